"""All measurements of one adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from lorakit.adapters import Adapter
from lorakit.analysis.amplification import Amplification, amplifications
from lorakit.analysis.layer_similarity import LayerSimilarity, layer_similarities
from lorakit.analysis.module_places import Place, module_places
from lorakit.analysis.spectrum import (
    UpdateSvd,
    pooled_energy,
    rank_for,
    require_share,
    update_svds,
)
from lorakit.errors import AdapterFileError

SHARES = (0.9, 0.99)
"""Shares of the energy that are always shown."""


@dataclass(frozen=True)
class RankChoice:
    """Ranks that would keep a share of the energy Σ‖ΔW‖_F².

    Attributes:
        share: The share.
        together: Smallest single rank at which all modules together keep the share.
        kept_together: Share that they keep at that rank: `share` or more.
        everywhere: Smallest single rank at which each module keeps the share of its energy.
        per_module: Smallest rank of each module that keeps the share of its energy, by path; 0
            for a module whose update is zero.
        parameters_together: Parameters of lora_A and lora_B at the rank `together`.
        parameters_everywhere: Parameters at the rank `everywhere`.
        parameters_per_module: Parameters at the ranks `per_module`.
    """

    share: float
    together: int
    kept_together: float
    everywhere: int
    per_module: Mapping[str, int]
    parameters_together: int
    parameters_everywhere: int
    parameters_per_module: int


@dataclass(frozen=True, eq=False)
class AdapterAnalysis:
    """Measurements of one adapter.

    Attributes:
        name: Name in reports.
        adapter: The adapter.
        energy: Share of the energy that decides the recommended rank.
        updates: Singular values and directions of every module.
        layer_similarities: φ between modules of the same input width, a matrix for each width.
        amplifications: Amplification of each update; empty without weights of the base.
    """

    name: str
    adapter: Adapter
    energy: float
    updates: tuple[UpdateSvd, ...]
    layer_similarities: tuple[LayerSimilarity, ...]
    amplifications: tuple[Amplification, ...] = ()

    @cached_property
    def places(self) -> dict[str, Place]:
        """Kind and layer of each module, by path."""
        return module_places([update.path for update in self.updates])

    @cached_property
    def kinds(self) -> dict[str, list[UpdateSvd]]:
        """The updates of each kind, in the adapter's order."""
        return self.by_kind(self.updates)

    def by_kind(self, found: Iterable[Any]) -> dict[str, list[Any]]:
        """Return what was found of modules, each with its `path`, by their kind."""
        kinds: dict[str, list[Any]] = {}
        for one in found:
            kinds.setdefault(self.places[one.path].kind, []).append(one)
        return kinds

    @property
    def zero_paths(self) -> list[str]:
        """Modules whose update is zero."""
        return [update.path for update in self.updates if update.is_zero]

    @property
    def largest_r(self) -> int:
        """Largest rank of a module."""
        return max(update.r for update in self.updates)

    @property
    def parameters(self) -> int:
        """Parameters of all lora_A and lora_B."""
        return sum(update.r * _parameters_per_rank(update) for update in self.updates)

    def rank_choice(self, share: float | None = None) -> RankChoice:
        """Return the ranks that would keep a share of the energy; None takes `energy`.

        Raises:
            ConfigError: The share is out of range.
        """
        share = self.energy if share is None else share
        per_module = {update.path: update.rank_for(share) for update in self.updates}
        spectra = [update.singular_values for update in self.updates]
        together = rank_for(spectra, share)
        everywhere = max(per_module.values())
        return RankChoice(
            share,
            together,
            pooled_energy(spectra)[together].item(),
            everywhere,
            per_module,
            self._parameters_at(dict.fromkeys(per_module, together)),
            self._parameters_at(dict.fromkeys(per_module, everywhere)),
            self._parameters_at(per_module),
        )

    def shares(self) -> list[float]:
        """Return the shares to show: the default ones and `energy`."""
        return sorted({*SHARES, self.energy})

    def _parameters_at(self, ranks: Mapping[str, int]) -> int:
        return sum(
            min(ranks[update.path], update.r) * _parameters_per_rank(update)
            for update in self.updates
        )


def analyze_adapter(
    adapter: Adapter,
    base_weights: Mapping[str, Tensor] | None = None,
    *,
    name: str = "adapter",
    energy: float = 0.9,
    seed: int = 0,
) -> AdapterAnalysis:
    """Measure spectra, ranks, subspaces and, given the base's weights, amplification.

    Args:
        adapter: A trained adapter.
        base_weights: W0 by module path, oriented as ΔW: (out, in), or (dim, vocabulary) for an
            embedding; float32, or any dtype that converts to it. None leaves amplification out.
        name: Name in reports.
        energy: Share of Σ‖ΔW‖_F² that the recommended rank keeps.
        seed: Seed of the random controls.

    Raises:
        ConfigError: `energy` is not in (0, 1].
        AdapterFileError: The adapter was never trained, or its factors are not finite.
        AdapterMismatchError: Shapes of a base weight and its update differ.

    Source: Hu et al. 2021, arXiv:2106.09685, section 7.
    """
    require_share(energy)
    updates = tuple(update_svds(adapter))
    if all(update.is_zero for update in updates):
        raise AdapterFileError(
            f"Nothing to analyse in {name}: got ΔW = 0 in all {len(updates)} modules, expected a "
            "trained adapter. lora_B (for an embedding, lora_A) is zero after initialization, "
            "so this one was never trained and changes nothing. Train it first."
        )
    found = () if base_weights is None else tuple(amplifications(updates, base_weights, seed))
    similarities = tuple(layer_similarities(updates, seed))
    return AdapterAnalysis(name, adapter, energy, updates, similarities, found)


def _parameters_per_rank(update: UpdateSvd) -> int:
    """Return the number of parameters of lora_A and lora_B per rank."""
    return update.in_features + update.out_features


def pooled_norm(updates: Sequence[UpdateSvd]) -> float:
    """Return √Σ‖ΔW‖_F² over several modules."""
    return sum(update.norm**2 for update in updates) ** 0.5
