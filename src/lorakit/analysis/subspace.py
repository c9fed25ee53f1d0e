"""Compute φ, the similarity of the subspaces of the top directions of two updates."""

from __future__ import annotations

import torch
from torch import Tensor

from lorakit.errors import ShapeError


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return φ(i, j) = ‖X_iᵀ Y_j‖_F² / min(i, j) for all i and j.

    X_i has the first i directions of one set, Y_j the first j of the other. 1 means that the
    smaller subspace is inside the larger one, 0 that they are orthogonal. This is the
    definition of section 7.2; the appendix of the paper restates it by a distance, with an error.

    Args:
        first: Directions as orthonormal columns, (n, r1).
        second: Directions as orthonormal columns, (n, r2).

    Returns: (r1, r2) in float64; row i - 1 and column j - 1 hold φ(i, j).

    Raises:
        ShapeError: The directions are of different spaces.

    Source: Hu et al. 2021, arXiv:2106.09685, section 7.2.

    >>> axes = torch.eye(3)
    >>> similarity(axes[:, :2], axes[:, 1:]).tolist()
    [[0.0, 0.0], [1.0, 0.5]]
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0]:
        raise ShapeError(
            f"Cannot compare directions of shapes {tuple(first.shape)} and {tuple(second.shape)}: "
            "expected (n, r1) and (n, r2) with the same n. Compare updates of the same width."
        )
    squares = (first.double().T @ second.double()).square()
    sums = squares.cumsum(0).cumsum(1)
    return (sums / torch.minimum(*_counts(*sums.shape))).clamp(0, 1)


def expected_similarity(n: int, r1: int, r2: int) -> Tensor:
    """Return the mean of φ(i, j) for independent random subspaces of n dimensions.

    E‖X_iᵀ Y_j‖_F² = i j / n, since each of the i j squared products of unit vectors is 1 / n on
    average; divided by min(i, j) that is max(i, j) / n.

    Args:
        n: Dimensions of the space.
        r1: Largest number of directions of the first.
        r2: Largest number of directions of the second.

    Returns: (r1, r2) in float64.

    >>> expected_similarity(8, 2, 4).tolist()
    [[0.125, 0.25, 0.375, 0.5], [0.25, 0.25, 0.375, 0.5]]
    """
    return torch.maximum(*_counts(r1, r2)) / n


def random_similarity(n: int, r1: int, r2: int, generator: torch.Generator) -> Tensor:
    """Return φ(i, j) of two Gaussian matrices, as the control of a measurement.

    Args:
        n: Dimensions of the space.
        r1: Number of directions of the first, at most n.
        r2: Number of directions of the second, at most n.
        generator: Generator of the matrices.

    Returns: (r1, r2) in float64.
    """
    return similarity(random_directions(n, r1, generator), random_directions(n, r2, generator))


def random_directions(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return uniformly random directions as orthonormal columns, (n, count) in float64."""
    gaussian = torch.randn(n, count, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian)[0]


def factor_directions(A: Tensor) -> Tensor:
    """Return the right-singular vectors of lora_A alone, (in, k), as the paper compares them.

    They span the same subspace as the input directions of ΔW, but in the order of A, which does
    not depend on B.

    Args:
        A: (r, in).
    """
    return torch.linalg.svd(A.double(), full_matrices=False)[2].T


def _counts(r1: int, r2: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of directions i, (r1, 1), and j, (1, r2)."""
    i = torch.arange(1, r1 + 1, dtype=torch.float64)[:, None]
    j = torch.arange(1, r2 + 1, dtype=torch.float64)[None, :]
    return i, j
