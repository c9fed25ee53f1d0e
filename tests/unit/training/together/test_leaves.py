"""Each run gets its part of an output as a leaf; one backward pass takes the gradients of all."""

from contextlib import contextmanager

import torch

from lorakit.training.together.leaves import Leaves
from lorakit.training.together.stacking import stack

RUNS = ("one", "other")


def stacked():
    """Two runs of one and two rows; the rows of the first are padded to three tokens."""
    return stack([{"input_ids": torch.ones(rows, n).long()} for rows, n in ((1, 2), (2, 3))])


def test_gradients_of_all_leaves_pass_the_graph_once():
    x = torch.randn(3, 3, 4, requires_grad=True)
    passes = []
    x.register_hook(lambda gradient: passes.append(gradient))
    output = x * 2
    leaves = Leaves(stacked(), RUNS, None)
    one, other = (leaves.cut(output, run) for run in RUNS)
    assert one.shape == (1, 2, 4) and other.shape == (2, 3, 4)
    assert torch.equal(one, output[:1, :2]) and torch.equal(other, output[1:])
    one.sum().backward()
    (3 * other).sum().backward()
    assert x.grad is None
    leaves.backward()
    expected = torch.full((3, 3, 4), 6.0)
    expected[0] = 2.0
    expected[0, 2] = 0.0  # what was added to reach the length of the others
    assert torch.equal(x.grad, expected) and len(passes) == 1


def test_a_leaf_without_a_gradient_counts_zero():
    x = torch.randn(3, 3, 4, requires_grad=True)
    leaves = Leaves(stacked(), RUNS, None)
    one, _ = (leaves.cut(x * 1, run) for run in RUNS)
    one.sum().backward()
    leaves.backward()
    assert x.grad[1:].abs().max() == 0 and x.grad[0, :2].min() == 1
    leaves.backward()
    assert x.grad.max() == 1, "what has passed does not pass twice"


def test_an_output_without_a_graph_is_cut_as_it_is():
    leaves = Leaves(stacked(), RUNS, None)
    part = leaves.cut(torch.arange(9.0).view(3, 3, 1), "one")
    assert part.tolist() == [[[0.0], [1.0]]] and not part.requires_grad
    leaves.backward()


def test_backward_has_the_rows_of_forward():
    """Layers that run again in backward must know which adapter each row has."""
    inside = []

    class Rows:
        @contextmanager
        def again(self):
            inside.append("again")
            yield

    x = torch.randn(3, 3, requires_grad=True)
    leaves = Leaves(stacked(), RUNS, Rows())
    leaves.cut(x * 1, "other").sum().backward()
    leaves.backward()
    assert inside == ["again"] and x.grad[1:].min() == 1
