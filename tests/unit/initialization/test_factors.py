import pytest
import torch

from lorakit.initialization.factors import gradient_factors, orthonormal_factors, principal_factors
from tolerances import largest_error


def matrix(out, inside, dtype=torch.float64):
    """With singular values 1, 1/2, 1/3, ..."""
    torch.manual_seed(0)
    side = min(out, inside)
    left = torch.linalg.qr(torch.randn(out, side, dtype=dtype))[0]
    right = torch.linalg.qr(torch.randn(inside, side, dtype=dtype))[0]
    return left / torch.arange(1, side + 1, dtype=dtype) @ right.T


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (5, 5)])
@pytest.mark.parametrize("scaling", [0.5, 3.0])
def test_principal_factors_are_the_best_approximation_and_equally_large(shape, scaling):
    W = matrix(*shape)
    A, B = principal_factors(W, 3, scaling)
    rest = W - scaling * B @ A
    values = torch.linalg.svdvals(W)
    assert rest.norm().item() == pytest.approx(values[3:].norm().item())
    assert torch.linalg.svdvals(rest)[0].item() == pytest.approx(values[3].item())
    assert largest_error(A.square().sum(1), B.square().sum(0)) < 1e-12


def test_a_randomised_decomposition_comes_near_and_follows_the_seed():
    W = matrix(40, 30)
    exact = torch.linalg.svdvals(W)[4:].norm()
    torch.manual_seed(5)
    A, B = principal_factors(W, 4, 2.0, iterations=8)
    assert (W - 2.0 * B @ A).norm() < 1.02 * exact
    torch.manual_seed(5)
    again = principal_factors(W, 4, 2.0, iterations=8)
    assert torch.equal(A, again[0]) and torch.equal(B, again[1])


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_orthonormal_factors_are_the_beginning_of_q_r(shape):
    W = matrix(*shape)
    A, B = orthonormal_factors(W, 3)
    assert largest_error(B.T @ B, torch.eye(3, dtype=W.dtype)) < 1e-12
    # Q R restricted to its first columns gives the weight's own first columns.
    assert largest_error((B @ A)[:, :3], W[:, :3]) < 1e-12


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_gradient_factors_take_the_second_half_for_b(shape):
    G = matrix(*shape)
    A, B = gradient_factors(G, 2)
    left, values, right = torch.linalg.svd(G, full_matrices=False)
    assert largest_error(A.abs(), right[:2].abs()) < 1e-12
    scale = shape[0] ** 0.25 / 4
    assert largest_error(B.abs(), (left[:, 2:4] * values[2:4]).abs() * scale) < 1e-12


def test_large_gradients_are_decomposed_at_random_and_leave_the_random_state(monkeypatch):
    monkeypatch.setattr("lorakit.initialization.factors.EXACT_SIDE", 8)
    G = matrix(60, 50)
    state = torch.get_rng_state()
    A, B = gradient_factors(G, 2)
    assert torch.equal(torch.get_rng_state(), state)
    _, values, right = torch.linalg.svd(G, full_matrices=False)
    assert largest_error((A @ right[:2].T).abs(), torch.eye(2, dtype=G.dtype)) < 1e-3
    lengths = B.norm(dim=0) / (60**0.25 / 4)
    assert largest_error(lengths, values[2:4]) < 1e-2
