"""The torch form of the grouped product equals one product for each run of tokens."""

import pytest
import torch

from lorakit.ops import LowRankTerm
from lorakit.ops.grouped_in_torch import add_, backward
from lorakit.ops.per_row_terms import PerRowTerms
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

LENGTHS = {"rows": None, "segments": (1, 4, 2, 5)}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_sums_and_gradients(lengths):
    torch.manual_seed(0)
    terms = [LowRankTerm(torch.randn(r, 6), torch.randn(4, r), 0.5 * r) for r in (1, 3)]
    rows = PerRowTerms(terms, (1, -1, 0, 1), lengths=lengths)
    x, g = torch.randn(12, 6), torch.randn(12, 4)
    h, grad_x = torch.zeros(12, 4), torch.zeros(12, 6)
    u = add_(h, x, rows)
    grads = backward(x, g, u, rows, grad_x, [(True, True)] * 2)
    leaves = [x, *(f for t in terms for f in (t.A, t.B))]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    expected = torch.zeros(12, 4)
    for begin, end, number in rows.spans(12):
        A, B = leaves[1 + 2 * number], leaves[2 + 2 * number]
        change = terms[number].scaling * (leaves[0][begin:end] @ A.t()) @ B.t()
        expected = expected.index_add(0, torch.arange(begin, end), change)
    assert largest_error(h, expected) <= TOLERANCE[torch.float32]
    wanted = torch.autograd.grad(expected, leaves, g)
    for got, other in zip([grad_x, *grads], wanted, strict=True):
        assert largest_error(got, other) <= GRADIENT_TOLERANCE[torch.float32]
    assert backward(x, g, u, rows, None, [(False, True), (False, False)])[0::2] == [None, None]
