import pytest
import torch

from fixtures.matrices import matrix
from lorakit.initialization.lora_ga import gradient_factors
from tolerances import largest_error


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_gradient_factors_take_the_second_half_for_b(shape):
    G = matrix(*shape)
    A, B = gradient_factors(G, 2)
    left, values, right = torch.linalg.svd(G, full_matrices=False)
    assert largest_error(A.abs(), right[:2].abs()) < 1e-12
    scale = shape[0] ** 0.25 / 4
    assert largest_error(B.abs(), (left[:, 2:4] * values[2:4]).abs() * scale) < 1e-12


def test_large_gradients_are_decomposed_at_random_and_leave_the_random_state(monkeypatch):
    monkeypatch.setattr("lorakit.initialization.lora_ga.EXACT_SIDE", 8)
    G = matrix(60, 50)
    state = torch.get_rng_state()
    A, B = gradient_factors(G, 2)
    assert torch.equal(torch.get_rng_state(), state)
    _, values, right = torch.linalg.svd(G, full_matrices=False)
    assert largest_error((A @ right[:2].T).abs(), torch.eye(2, dtype=G.dtype)) < 1e-3
    lengths = B.norm(dim=0) / (60**0.25 / 4)
    assert largest_error(lengths, values[2:4]) < 1e-2
