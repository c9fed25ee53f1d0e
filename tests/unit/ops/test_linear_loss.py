"""The chunked losses equal cross-entropy on all logits, and never make all logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from allocations import allocations_of
from lorakit.ops.linear_loss import (
    known_values,
    linear_cross_entropy_sum,
    sum_over_chunks,
    values_and_gradients,
)
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

INSIDE, VOCABULARY = 6, 40


def operands(tokens, dtype=torch.float64, vocabulary=VOCABULARY):
    torch.manual_seed(0)
    hidden = torch.randn(tokens, INSIDE, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, INSIDE, dtype=torch.float64).to(dtype)
    bias = torch.randn(vocabulary, dtype=torch.float64).to(dtype)
    return hidden, weight, bias, torch.randint(0, vocabulary, (tokens,))


def gradients(loss, *leaves):
    return torch.autograd.grad(loss * 0.5, leaves)


def fused(hidden, weight, bias, targets, chunk_tokens):
    return linear_cross_entropy_sum(hidden, weight, bias, targets, chunk_tokens=chunk_tokens)


def looped(hidden, weight, bias, targets, chunk_tokens):
    def loss_of(h, t):
        return F.cross_entropy(F.linear(h, weight, bias).float(), t, reduction="sum")

    def exact(h, t):
        return F.cross_entropy(F.linear(h, weight, bias), t, reduction="sum")

    loss_of = exact if hidden.dtype == torch.float64 else loss_of
    return sum_over_chunks(loss_of, hidden, targets, (weight, bias), chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("make", [fused, looped])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 11, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradients_equal_those_of_all_logits(make, chunk_tokens, dtype):
    hidden, weight, bias, targets = operands(11, dtype)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    got = make(hidden, weight, bias, targets, chunk_tokens)
    found = gradients(got, *leaves)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    expected = F.cross_entropy(F.linear(*wide), targets, reduction="sum")
    assert largest_error(got, expected) <= TOLERANCE[dtype]
    for mine, theirs, leaf in zip(found, gradients(expected, *wide), leaves, strict=True):
        assert mine.dtype == leaf.dtype
        assert largest_error(mine, theirs) <= GRADIENT_TOLERANCE[dtype]


def test_gradcheck():
    hidden, weight, bias, targets = operands(5)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: looped(*t, targets, 2), leaves)


@pytest.mark.parametrize("make", [fused, looped])
def test_no_tokens_give_no_loss_and_no_gradient(make):
    hidden, weight, bias, targets = operands(0)
    hidden.requires_grad_()
    loss = make(hidden, weight, bias, targets, 4)
    loss.backward()
    assert loss.item() == 0.0 and hidden.grad.shape == (0, INSIDE)


@pytest.mark.parametrize(("make", "buffers"), [(fused, 1), (looped, 4)])
def test_only_a_chunk_of_logits_exists_in_forward_and_backward(make, buffers):
    hidden, weight, bias, targets = operands(64, vocabulary=1000)
    hidden.requires_grad_()
    whole, chunk = 64 * 1000 * 8, 8 * 1000 * 8  # float64
    made = allocations_of(lambda: make(hidden, weight, bias, targets, 8).backward())
    assert made.largest < whole / 4
    assert chunk <= made.peak <= buffers * chunk + 6 * hidden.nbytes < whole

    plain = lambda: F.cross_entropy(F.linear(hidden, weight, bias), targets).backward()  # noqa: E731
    assert allocations_of(plain).peak > 2 * whole, "the measure must see what it is to forbid"


def test_only_trained_tensors_get_a_gradient():
    hidden, weight, bias, targets = operands(9)
    hidden.requires_grad_()
    bias.requires_grad_()
    looped(hidden, weight, bias, targets, 4).backward()
    assert hidden.grad is not None and bias.grad is not None and weight.grad is None
    frozen = hidden.detach()
    bias.grad = None
    looped(frozen, weight, bias, targets, 4).backward()
    assert bias.grad is not None


def test_without_gradients_the_loop_is_plain():
    hidden, weight, bias, targets = operands(9)
    weight.requires_grad_()
    with torch.no_grad():
        loss = looped(hidden, weight, bias, targets, 4)
    assert not loss.requires_grad
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    assert largest_error(loss, expected) <= TOLERANCE[torch.float64]


def test_random_numbers_are_drawn_once():
    """Dropout in the output layer has one mask in forward and backward."""
    hidden, weight, _, targets = operands(8)
    hidden.requires_grad_()
    draws = []

    def loss_of(h, t):
        mask = torch.rand_like(h)
        draws.append(mask)
        return F.cross_entropy(F.linear(h * mask, weight), t, reduction="sum")

    loss = sum_over_chunks(loss_of, hidden, targets, chunk_tokens=4)
    loss.backward()
    assert len(draws) == 2
    again = hidden.detach().requires_grad_()
    masked = F.linear(again * torch.cat(draws), weight)
    F.cross_entropy(masked, targets, reduction="sum").backward()
    assert largest_error(hidden.grad, again.grad) <= TOLERANCE[torch.float64]


def test_under_autocast_every_chunk_runs_in_its_dtype():
    head = nn.Linear(INSIDE, VOCABULARY)
    hidden, _, _, targets = operands(8, torch.float32)
    hidden.requires_grad_()
    dtypes = set()

    def loss_of(h, t):
        logits = head(h)
        dtypes.add(logits.dtype)
        return F.cross_entropy(logits.float(), t, reduction="sum")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        sum_over_chunks(loss_of, hidden, targets, list(head.parameters()), chunk_tokens=4)
    assert dtypes == {torch.bfloat16}


def test_values_that_are_computed_already_have_their_gradients():
    hidden, weight, bias, targets = operands(11)
    hidden.requires_grad_()

    def values_of(h, t):
        return F.cross_entropy(F.linear(h, weight, bias), t, reduction="none")

    weights = torch.rand(11, dtype=torch.float64)
    expected = values_of(hidden, targets)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), hidden)
    values, gradients = values_and_gradients(values_of, hidden, targets, chunk_tokens=4)
    assert not values.requires_grad
    torch.testing.assert_close(values, expected)
    known = known_values(hidden, values, gradients)
    (got,) = torch.autograd.grad((known * weights).sum(), hidden)
    torch.testing.assert_close(got, wanted)
