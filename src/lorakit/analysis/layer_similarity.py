"""Compute φ between modules of one adapter with the same input width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.analysis.spectrum import UpdateSvd
from lorakit.analysis.subspace import random_directions

TOP_DIRECTIONS = 4
"""Number of top directions of each module that are compared."""


@dataclass(frozen=True, eq=False)
class LayerSimilarity:
    """φ of the top input directions between all modules of one input width.

    Attributes:
        in_features: Input width n.
        paths: Paths of the modules, in the order of rows and columns.
        directions: Number of top directions of each: 4, or its rank if that is lower.
        phi: (modules, modules) in float64; symmetric, 1 on the diagonal.
        random: φ of random directions, the control.
    """

    in_features: int
    paths: tuple[str, ...]
    directions: tuple[int, ...]
    phi: Tensor
    random: Tensor

    @property
    def mean(self) -> float:
        """φ on average over the pairs of different modules."""
        return _mean_of_pairs(self.phi)

    @property
    def random_mean(self) -> float:
        """Mean of the control."""
        return _mean_of_pairs(self.random)

    @property
    def largest(self) -> float:
        """Largest φ of two different modules, measured or of the control."""
        outside = ~torch.eye(len(self.paths), dtype=torch.bool)
        return max(self.phi[outside].max().item(), self.random[outside].max().item())

    def closest(self) -> tuple[str, str, float]:
        """Return the pair of different modules with the largest φ, and that φ."""
        count = len(self.paths)
        # Each pair once: its two entries may differ by rounding.
        masked = self.phi.triu(1) - torch.ones_like(self.phi).tril()
        row, column = divmod(int(masked.argmax()), count)
        return self.paths[row], self.paths[column], self.phi[row, column].item()


def layer_similarities(
    updates: Sequence[UpdateSvd], seed: int = 0, top: int = TOP_DIRECTIONS
) -> list[LayerSimilarity]:
    """Compare the input directions of all modules that have the same input width.

    Embeddings, zero updates, and widths of a single module are omitted. Modules
    that read the same activation (q, k, v) may share directions; so may those of different
    layers, since all layers read the residual stream.

    Args:
        updates: Result of `update_svds`.
        seed: Seed of the random control.
        top: Number of top directions of each module.

    Returns: One result for each width, the largest group first.

    Source: φ of Hu et al. 2021, arXiv:2106.09685, section 7.2.
    """
    groups: dict[int, list[UpdateSvd]] = {}
    for update in updates:
        if not (update.is_embedding or update.is_zero):
            groups.setdefault(update.in_features, []).append(update)
    generator = torch.Generator().manual_seed(seed)
    made = []
    for width, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        if len(group) < 2:
            continue
        counts = tuple(min(top, update.rank) for update in group)
        measured = [update.right[:k].T for update, k in zip(group, counts, strict=True)]
        random = [random_directions(width, k, generator) for k in counts]
        paths = tuple(update.path for update in group)
        made.append(LayerSimilarity(width, paths, counts, _pairwise(measured), _pairwise(random)))
    return made


def _pairwise(directions: Sequence[Tensor]) -> Tensor:
    """Return φ of every two sets of directions, by one product for all pairs."""
    counts = torch.tensor([columns.shape[1] for columns in directions])
    owner = torch.arange(len(directions)).repeat_interleave(counts)
    stacked = torch.cat(list(directions), dim=1)
    squares = (stacked.T @ stacked).square()
    sums = torch.zeros(len(directions), len(squares), dtype=squares.dtype)
    sums.index_add_(0, owner, squares)
    blocks = torch.zeros(len(directions), len(directions), dtype=squares.dtype)
    blocks.index_add_(1, owner, sums)
    return (blocks / torch.minimum(counts[:, None], counts[None, :])).clamp(0, 1)


def _mean_of_pairs(matrix: Tensor) -> float:
    count = len(matrix)
    return ((matrix.sum() - matrix.trace()) / (count * (count - 1))).item()
