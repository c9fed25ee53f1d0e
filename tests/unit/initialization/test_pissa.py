import pytest
import torch

from fixtures.matrices import matrix
from lorakit.initialization.pissa import principal_factors
from tolerances import largest_error


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
