"""Whether an update strengthens what its base has already: the amplification factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.analysis.spectrum import UpdateSvd
from lorakit.analysis.subspace import random_directions
from lorakit.errors import AdapterMismatchError

_EXACT_ROWS = 2048
"""Above this number of rows and columns, only the top singular values are computed."""
_EXTRA_DIRECTIONS = 16
_POWER_STEPS = 6


@dataclass(frozen=True)
class Amplification:
    """An update compared with the weight of its base.

    Attributes:
        path: Path of the module in the base.
        directions: Number of top directions r: the rank of the update.
        update_norm: ‖ΔW‖_F.
        base_norm: ‖W0‖_F.
        along_update: ‖Uᵀ W0 V‖_F with U, V the top singular directions of ΔW.
        along_base: The same with the directions of W0, the maximum for r directions.
        along_random: The same with random directions.
    """

    path: str
    directions: int
    update_norm: float
    base_norm: float
    along_update: float
    along_base: float
    along_random: float

    @property
    def factor(self) -> float:
        """‖ΔW‖_F / ‖Uᵀ W0 V‖_F; infinite if W0 is zero along the directions of the update."""
        return self.update_norm / self.along_update if self.along_update else float("inf")


def amplifications(
    updates: Sequence[UpdateSvd], base_weights: Mapping[str, Tensor], seed: int = 0
) -> list[Amplification]:
    """Measure how much each update amplifies directions that the base weight already has.

    Zero updates, and those without a base weight, are omitted.

    Args:
        updates: Result of `update_svds`.
        base_weights: W0 by module path, oriented as ΔW: (out, in), or (dim, vocabulary).
        seed: Seed of the random directions.

    Raises:
        AdapterMismatchError: Shapes of a weight and its update differ.

    Source: Hu et al. 2021, arXiv:2106.09685, section 7.3 and table 7.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        amplification(update, base_weights[update.path], generator)
        for update in updates
        if update.path in base_weights and not update.is_zero
    ]


@torch.no_grad()
def amplification(
    update: UpdateSvd, base_weight: Tensor, generator: torch.Generator
) -> Amplification:
    """Compare one update with the weight of its base.

    Args:
        update: Update that is not zero.
        base_weight: W0, oriented as ΔW.
        generator: Generator of the random directions.

    Raises:
        AdapterMismatchError: Shapes of the weight and the update differ.
    """
    shape = (update.out_features, update.in_features)
    if tuple(base_weight.shape) != shape:
        raise AdapterMismatchError(
            f"The adapter was made for another base: its update of {update.path} is {shape}, but "
            f"the base's weight is {tuple(base_weight.shape)}. Name the base it was trained on."
        )
    W0 = base_weight.detach().cpu().double()
    r = update.rank
    left, right = update.left[:, :r], update.right[:r].T
    random_left = random_directions(shape[0], r, generator)
    random_right = random_directions(shape[1], r, generator)
    return Amplification(
        path=update.path,
        directions=r,
        update_norm=update.norm,
        base_norm=W0.norm().item(),
        along_update=(left.T @ W0 @ right).norm().item(),
        along_base=top_norm(W0, r, generator),
        along_random=(random_left.T @ W0 @ random_right).norm().item(),
    )


def top_norm(
    W0: Tensor, directions: int, generator: torch.Generator, exact_rows: int = _EXACT_ROWS
) -> float:
    """Return the Frobenius norm of the best approximation of a matrix by a given rank.

    Args:
        W0: (out, in), float64.
        directions: The rank.
        generator: Generator of the initial subspace.
        exact_rows: Matrices with more rows and columns use subspace iteration, whose result is
            slightly too small.

    Source: Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.4.
    """
    wide = W0 if W0.shape[0] <= W0.shape[1] else W0.T
    if wide.shape[0] <= exact_rows:
        squares = torch.linalg.eigvalsh(wide @ wide.T)
        return squares[-directions:].clamp(min=0).sum().sqrt().item()
    count = min(directions + _EXTRA_DIRECTIONS, wide.shape[0])
    basis = random_directions(wide.shape[0], count, generator)
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(wide @ (wide.T @ basis))[0]
    return torch.linalg.svdvals(basis.T @ wide)[:directions].norm().item()
