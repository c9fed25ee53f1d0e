"""The reference formulas against autograd and against each other."""

import torch

from lorakit.ops.reference import (
    delta_weight_reference,
    dora_linear_reference,
    low_rank_gradients_reference,
    low_rank_linear_reference,
)
from tolerances import TOLERANCE, largest_error


def operands():
    torch.manual_seed(0)
    shapes = (5, 6), (4, 6), (2, 6), (4, 2)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_the_closed_form_of_the_gradients_is_autograd_s():
    x, W0, A, B = operands()
    h = low_rank_linear_reference(x, W0, None, A, B, 0.5)
    g = torch.randn_like(h)
    expected = torch.autograd.grad(h, (x, A, B), g)
    got = low_rank_gradients_reference(x, W0, A, B, 0.5, g)
    for one, other in zip(got, expected, strict=True):
        assert largest_error(one, other) <= TOLERANCE[torch.float64]


def test_the_update_is_a_change_of_the_weight():
    x, W0, A, B = operands()
    merged = x @ (W0 + delta_weight_reference(A, B, 0.5)).T
    got = low_rank_linear_reference(x, W0, None, A, B, 0.5)
    assert largest_error(got, merged) <= TOLERANCE[torch.float64]


def test_a_magnitude_of_the_norms_changes_nothing():
    x, W0, A, B = operands()
    norms = (W0 + 0.5 * B @ A).norm(dim=1)
    got = dora_linear_reference(x, W0, None, A, B, 0.5, norms)
    expected = low_rank_linear_reference(x, W0, None, A, B, 0.5)
    assert largest_error(got, expected) <= TOLERANCE[torch.float64]
