"""Factors to begin with that are computed: of a weight, of its gradient, or of what it has lost."""

import torch
from torch import Tensor

from lorakit.ops.factored_svd import EXACT_SIDE

_GRADIENT_POWER_STEPS = 4
_GAMMA = 16
"""The constant of LoRA-GA's scale, which its authors leave at 16."""


@torch.no_grad()
def principal_factors(
    matrix: Tensor, r: int, scaling: float, iterations: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return A and B of which s B A is the best approximation of rank r, as large as each other.

    Args:
        matrix: (out, in), float32 or float64.
        r: At most min(out, in).
        scaling: Dimensionless factor s, above 0.
        iterations: Power steps of a randomised decomposition, which draws from torch's default
            generator; None decomposes in full.

    Returns: A (r, in), B (out, r).

    Source: Meng et al. 2024, arXiv:2404.02948, equations 2 and 3; Eckart and Young 1936.
    """
    if iterations is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        left, values, columns = torch.svd_lowrank(matrix, r, niter=iterations)
        right = columns.t()
    root = (values[:r] / scaling).sqrt()
    return root[:, None] * right[:r], left[:, :r] * root


@torch.no_grad()
def orthonormal_factors(matrix: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return the first r rows of R as A and columns of Q as B, of matrix = Q R.

    Args:
        matrix: (out, in), float32 or float64.
        r: At most min(out, in).

    Returns: A (r, in), B (out, r) with orthonormal columns.

    Source: Büyükakyüz 2024, arXiv:2406.01775, algorithm 1.
    """
    Q, R = torch.linalg.qr(matrix)
    return R[:r].contiguous(), Q[:, :r].contiguous()


@torch.no_grad()
def gradient_factors(gradient: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return factors whose first step moves the weight as full fine-tuning would.

    A has the right singular vectors 1 to r of the gradient; B has the left ones r + 1 to 2r, times
    their singular values, times out^(1/4) / sqrt(16).

    Args:
        gradient: Of the loss with respect to the weight, (out, in), float32 or float64.
        r: At most half of min(out, in).

    Returns: A (r, in), B (out, r).

    Source: Wang et al. 2024, arXiv:2407.05000, section 3.3; which vectors go where, and the scale,
        are those of its authors' code and of PEFT ("ArB2r", "stable").
    """
    side = min(gradient.shape)
    if side <= max(EXACT_SIDE, 4 * r):
        left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=_devices(gradient)):
            torch.manual_seed(0)
            left, values, columns = torch.svd_lowrank(gradient, 4 * r, niter=_GRADIENT_POWER_STEPS)
        right = columns.t()
    scale = gradient.shape[0] ** 0.25 / _GAMMA**0.5
    return right[:r].contiguous(), left[:, r : 2 * r] * (values[r : 2 * r] * scale)


def _devices(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.is_cuda else []
