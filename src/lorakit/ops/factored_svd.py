"""Singular value decompositions of low-rank products, and low-rank factors of dense matrices."""

# torch.linalg has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch
from torch import Tensor

EXACT_SIDE = 1024
"""Largest smaller side of a dense matrix to decompose in full; above it, by random projection."""

_OVERSAMPLING, _POWER_STEPS = 16, 10


@torch.no_grad()
def product_svd(A: Tensor, B: Tensor, scaling: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin singular value decomposition of s B A without forming the product.

    With B = Q_B R_B and Aᵀ = Q_A R_A, s B A = Q_B (s R_B R_Aᵀ) Q_Aᵀ: the singular values are those
    of the (r, r) core, and its singular vectors rotate the two orthonormal bases into those of ΔW.

    Args:
        A: (*, r, in), any floating point type.
        B: (*, out, r).
        scaling: Dimensionless factor s.

    Returns: left (*, out, k), singular values (*, k) in descending order, right (*, k, in), all
        float64; k = min(r, out, in).

    Memory: three matrices of the factors' size, never one of (out, in).
    Source: the QR trick for the SVD of a product, Golub and Van Loan 2013, section 8.6.
    """
    q_b, r_b = torch.linalg.qr(B.double())
    q_a, r_a = torch.linalg.qr(A.double().mT)
    u, singular_values, vh = torch.linalg.svd(scaling * (r_b @ r_a.mT), full_matrices=False)
    return q_b @ u, singular_values, vh @ q_a.mT


@torch.no_grad()
def product_singular_values(A: Tensor, B: Tensor, scaling: float = 1.0) -> Tensor:
    """Return the singular values of s B A, without the vectors that `product_svd` computes.

    Args:
        A: (*, r, in), any floating point type.
        B: (*, out, r).
        scaling: Dimensionless factor s.

    Returns: (*, k) in descending order, float64; k = min(r, out, in).

    Memory: two matrices of the factors' size.
    """
    _, r_b = torch.linalg.qr(B.double(), mode="r")
    _, r_a = torch.linalg.qr(A.double().mT, mode="r")
    return torch.linalg.svdvals(scaling * (r_b @ r_a.mT))


@torch.no_grad()
def truncate_product(
    A: Tensor, B: Tensor, r: int, scaling: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rank-r factors of the best approximation of s B A, and all singular values.

    The new A has orthonormal rows and the new B contains the singular values, so directions of
    singular value zero can still be trained.

    Args:
        A: (*, k, in).
        B: (*, out, k).
        r: At most min(k, out, in).
        scaling: Dimensionless factor s.

    Returns: A (*, r, in), B (*, out, r), singular values (*, min(k, out, in)) in descending order;
        float64.

    Source: Eckart and Young 1936.
    """
    left, values, right = product_svd(A, B, scaling)
    return right[..., :r, :], left[..., :r] * values[..., None, :r], values


@torch.no_grad()
def truncate_dense(matrix: Tensor, r: int, exact: bool | None = None) -> tuple[Tensor, Tensor]:
    """Return rank-r factors of a good approximation of a dense matrix.

    Small matrices, and ranks near the smaller side, are decomposed in full. Otherwise the range
    is found by random projection with power steps, in a fraction of the time; seeded. For a
    falling spectrum it keeps as much as the best approximation, for white noise, the hardest case,
    at least 97% of that.

    Args:
        matrix: (out, in), float32 or float64; a stack (*, out, in) is decomposed one by one.
        r: At most min(out, in).
        exact: Whether to decompose in full; None decides by the size.

    Returns: A (r, in) with orthonormal rows, B (out, r); dtype of the matrix. matrix - B A is
        orthogonal to B A, so ‖BA‖² / ‖matrix‖² is the share kept.

    Source: Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1.
    """
    if matrix.ndim > 2:
        pairs = [truncate_dense(one, r, exact) for one in matrix]
        return torch.stack([A for A, _ in pairs]), torch.stack([B for _, B in pairs])
    side = min(matrix.shape)
    if exact is None:
        exact = side <= max(EXACT_SIDE, 4 * r)
    if exact:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return right[:r], left[:, :r] * values[:r]
    generator = torch.Generator(device=matrix.device).manual_seed(0)
    columns = min(r + max(r, _OVERSAMPLING), side)
    probe = torch.randn(
        matrix.shape[1], columns, generator=generator, dtype=matrix.dtype, device=matrix.device
    )
    basis = torch.linalg.qr(matrix @ probe)[0]
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return right[:r], basis @ (left[:, :r] * values[:r])
