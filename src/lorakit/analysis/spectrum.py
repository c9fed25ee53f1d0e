"""Compute the singular values of an update, and how many of them it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lorakit.adapters import Adapter
from lorakit.adapters.operations.requirements import require_base_independent
from lorakit.errors import AdapterFileError, ConfigError, first_few
from lorakit.injection.selection.variants import variants_of
from lorakit.ops.factored_svd import product_svd

_ZERO = 1e-6
"""Singular values below this share of the largest are rounding errors of float32 factors."""

_SHARE_TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class UpdateSvd:
    """ΔW = left · diag(singular_values) · right of one module, from its factors alone.

    For an embedding, ΔW is (dim, vocabulary), as in `Adapter.delta_weight`.

    Attributes:
        path: Path of the module in the base.
        r: Rank of the factors, as trained.
        left: Directions of the output, (out, k) with orthonormal columns; k = min(r, out, in).
        singular_values: In descending order, (k,); in the units of the weight.
        right: Directions of the input, (k, in) with orthonormal rows.
        is_embedding: Whether the module is an embedding, whose input directions are mixes of
            tokens.
    """

    path: str
    r: int
    left: Tensor
    singular_values: Tensor
    right: Tensor
    is_embedding: bool = False

    @property
    def in_features(self) -> int:
        """Columns of ΔW; the vocabulary of an embedding."""
        return self.right.shape[1]

    @property
    def out_features(self) -> int:
        """Rows of ΔW."""
        return self.left.shape[0]

    @cached_property
    def rank(self) -> int:
        """Number of singular values above rounding error; 0 for a zero update."""
        largest = self.spectral_norm
        return int((self.singular_values > _ZERO * largest).sum()) if largest else 0

    @property
    def is_zero(self) -> bool:
        """Whether the update is zero, as before training."""
        return self.rank == 0

    @cached_property
    def norm(self) -> float:
        """The Frobenius norm ‖ΔW‖_F."""
        return self.singular_values.square().sum().sqrt().item()

    @cached_property
    def spectral_norm(self) -> float:
        """The largest singular value ‖ΔW‖_2."""
        return self.singular_values.max().item() if self.singular_values.numel() else 0.0

    @cached_property
    def effective_rank(self) -> float:
        """See `effective_rank`."""
        return effective_rank(self.singular_values)

    @cached_property
    def stable_rank(self) -> float:
        """‖ΔW‖_F² / ‖ΔW‖_2², between 1 and the rank; 0 for a zero update."""
        return (self.norm / self.spectral_norm) ** 2 if self.spectral_norm else 0.0

    def energy_kept(self) -> Tensor:
        """See `energy_kept`."""
        return energy_kept(self.singular_values)

    def rank_for(self, share: float) -> int:
        """See `rank_for`."""
        return rank_for([self.singular_values], share)


def what_is_left_out(adapter: Adapter) -> str | None:
    """Return a sentence on what the factors alone do not show of an adapter, or None."""
    effects = [variant.effect for variant in variants_of(adapter.config) if variant.effect]
    if not effects:
        return None
    return f"Only s·B·A is measured: the adapter also {' and '.join(effects)}."


def update_svds(adapter: Adapter) -> list[UpdateSvd]:
    """Decompose s B A of every module of an adapter, in the adapter's order.

    What variants do besides is not included; see `what_is_left_out`.

    Raises:
        AdapterFileError: A factor holds NaN or infinite values, or the factors belong to a base
            that PEFT has changed.
    """
    require_base_independent(adapter, "decompose", "the adapter")
    broken = [
        path
        for path, (A, B) in adapter.factors.items()
        if not (A.isfinite().all() and B.isfinite().all())
    ]
    if broken:
        raise AdapterFileError(
            f"Cannot decompose the updates of {first_few(broken)}: got NaN or infinite "
            "numbers in their factors. Train again with a lower learning rate."
        )
    stacked = [path for path, (A, B) in adapter.factors.items() if A.ndim != 2 or B.ndim != 2]
    if stacked:
        raise AdapterFileError(
            f"Cannot decompose the update of {stacked[0]}: got factors of stacked weights, "
            "expected matrices. `lorakit inspect` without --plot shows such updates."
        )
    made = []
    for path, (A, B) in adapter.factors.items():
        left, singular_values, right = product_svd(A, B, adapter.config.scaling_for(path))
        is_embedding = path in adapter.embeddings
        made.append(UpdateSvd(path, A.shape[0], left, singular_values, right, is_embedding))
    return made


def effective_rank(singular_values: Tensor) -> float:
    """Return exp(entropy) of the singular values as shares of their sum.

    With p_i = σ_i / Σσ (the values themselves, not their squares) it is exp(-Σ p_i ln p_i):
    r if r values are equal, 1 if only one is not zero, and in between otherwise.

    Args:
        singular_values: (k,), not negative.

    Returns: A number from 1 to k; 0 if all are zero.

    Source: Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality.

    >>> round(effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])), 6)
    3.0
    """
    total = singular_values.sum()
    if not total:
        return 0.0
    shares = singular_values.double() / total.double()
    return torch.special.entr(shares).sum().exp().item()


def energy_kept(singular_values: Tensor) -> Tensor:
    """Return the share of ‖ΔW‖_F² that the best approximation of each rank keeps.

    The best approximation of rank k keeps the k largest singular values (Eckart and Young 1936),
    and with them Σ_{i≤k} σ_i² / Σ σ_i².

    Args:
        singular_values: (k,) in descending order.

    Returns: (k + 1,) in float64, for the ranks 0 to k; all 1 if the update is zero, since nothing
        is lost.

    >>> energy_kept(torch.tensor([2.0, 1.0, 1.0])).tolist()
    [0.0, 0.6666666666666666, 0.8333333333333334, 1.0]
    """
    energies = torch.cat([singular_values.new_zeros(1), singular_values]).double().square()
    sums = energies.cumsum(0)
    return sums / sums[-1] if sums[-1] else torch.ones_like(sums)


def pooled_energy(spectra: Sequence[Tensor]) -> Tensor:
    """Return the share of the summed energy that all modules keep when each is cut to rank k.

    Args:
        spectra: Singular values of each module, each (k_i,) in descending order.

    Returns: (max k_i + 1,) in float64, for the ranks 0 to max k_i.
    """
    longest = max((len(values) for values in spectra), default=0)
    energies = torch.zeros(longest, dtype=torch.float64)
    for values in spectra:
        energies[: len(values)] += values.double().square()
    return energy_kept(energies.sqrt())


def rank_for(spectra: Sequence[Tensor], share: float) -> int:
    """Return the smallest rank that keeps a share of the energy of all modules together.

    Args:
        spectra: Singular values of each module, in descending order.
        share: Share of Σ‖ΔW‖_F², above 0 and at most 1.

    Returns: The rank; 0 if all updates are zero.

    Raises:
        ConfigError: The share is out of range.
    """
    require_share(share)
    kept = pooled_energy(spectra)
    return int((kept < share - _SHARE_TOLERANCE).sum())


def require_share(share: float) -> None:
    """Refuse a share of the energy outside (0, 1].

    Raises:
        ConfigError: The share is out of range, or not a number.
    """
    if not 0 < share <= 1:
        raise ConfigError(
            f"No rank keeps this share in energy: got {share:g}, expected a number above 0 and at "
            "most 1. Give 0.9 for nine tenths of ‖ΔW‖²."
        )
