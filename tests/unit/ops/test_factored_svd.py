"""Low-rank factors of products and of dense matrices."""

import pytest
import torch

from lorakit.ops.factored_svd import (
    product_singular_values,
    product_svd,
    truncate_dense,
    truncate_product,
)
from tiny_models.adapters import factors_with, random_factors
from tolerances import largest_error


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (8, 8)])
def test_a_product_is_cut_to_its_best_approximation(shape):
    A, B = random_factors(6, *shape)
    new_A, new_B, values = truncate_product(A, B, 4, -1.5)
    u, s, vh = torch.linalg.svd(-1.5 * B.double() @ A.double())
    assert largest_error(new_B @ new_A, u[:, :4] * s[:4] @ vh[:4]) < 1e-12
    assert largest_error(values, s[:6]) < 1e-12
    assert largest_error(new_A @ new_A.T, torch.eye(4)) < 1e-12


@pytest.mark.parametrize("shape", [(30, 20), (4, 30), (30, 3), (8, 8)])
def test_singular_values_alone_are_those_of_the_decomposition(shape):
    A, B = random_factors(6, *shape)
    values = product_singular_values(A, B, -1.5)
    assert values.dtype == torch.float64 and len(values) == min(6, *shape)
    assert largest_error(values, product_svd(A, B, -1.5)[1]) < 1e-12
    dense = torch.linalg.svdvals(1.5 * B.double() @ A.double())
    assert largest_error(values, dense[: len(values)]) < 1e-12


def test_each_product_of_a_stack_has_its_singular_values():
    pairs = [random_factors(3, 8, 8, seed=n) for n in range(3)]
    A, B = (torch.stack(factors) for factors in zip(*pairs, strict=True))
    expected = torch.stack([product_singular_values(*pair, -1.5) for pair in pairs])
    assert largest_error(product_singular_values(A, B, -1.5), expected) < 1e-12


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_random_projection_keeps_nearly_what_the_best_approximation_keeps(shape):
    torch.manual_seed(1)
    matrix = torch.randn(shape, dtype=torch.float64)  # a flat spectrum, the hardest case
    best_A, best_B = truncate_dense(matrix, 5, exact=True)
    A, B = truncate_dense(matrix, 5, exact=False)
    best, kept = (best_B @ best_A).norm() ** 2, (B @ A).norm() ** 2
    assert 0.97 * best < kept <= best * (1 + 1e-12)
    residual = matrix - B @ A
    assert residual.norm() ** 2 == pytest.approx((matrix.norm() ** 2 - kept).item(), rel=1e-9)
    assert largest_error(A @ A.T, torch.eye(5)) < 1e-12


def test_random_projection_finds_a_low_rank_matrix_exactly_and_always_the_same():
    (A, B), _, _ = factors_with([5.0, 3.0, 1.0, 0.1], 50, 70)
    first, again = (truncate_dense(B @ A, 4, exact=False) for _ in range(2))
    assert largest_error(first[1] @ first[0], B @ A) < 1e-12
    assert torch.equal(first[1], again[1])
