import pytest
import torch

from fixtures.matrices import matrix
from lorakit.initialization.olora import orthonormal_factors
from tolerances import largest_error


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_orthonormal_factors_are_the_beginning_of_q_r(shape):
    W = matrix(*shape)
    A, B = orthonormal_factors(W, 3)
    assert largest_error(B.T @ B, torch.eye(3, dtype=W.dtype)) < 1e-12
    # Q R restricted to its first columns gives the weight's own first columns.
    assert largest_error((B @ A)[:, :3], W[:, :3]) < 1e-12
