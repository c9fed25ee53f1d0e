"""Everything that is measured of one adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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
"""Shares of the energy whose ranks are always shown."""


@dataclass(frozen=True)
class RankChoice:
    """Which ranks would have kept a share of the energy Σ‖ΔW‖_F².

    Attributes:
        share: The share.
        together: Smallest single rank at which all modules together keep it.
        kept_together: Share that they keep at that rank: `share` or more.
        everywhere: Smallest single rank at which each module keeps it of its own.
        own: Smallest rank of each module that keeps it of its own, by path; 0 for a module whose
            update is zero.
        parameters_together: Numbers in lora_A and lora_B at the rank `together`.
        parameters_everywhere: The same at the rank `everywhere`.
        parameters_own: The same at the ranks `own`.
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
    """What was measured of one adapter.

    Attributes:
        name: What to call it.
        adapter: The adapter.
        energy: The share of the energy that decides the recommended rank.
        updates: Singular values and directions of every module.
        layer_similarities: φ between modules of one input width, a matrix for each width.
        amplifications: Empty where the base's weights were not given.
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
        kinds: dict[str, list[UpdateSvd]] = {}
        for update in self.updates:
            kinds.setdefault(self.places[update.path].kind, []).append(update)
        return kinds

    @property
    def zero_paths(self) -> list[str]:
        """Modules whose update changes nothing."""
        return [update.path for update in self.updates if update.is_zero]

    @property
    def largest_r(self) -> int:
        """The largest rank of a module."""
        return max(update.r for update in self.updates)

    @property
    def parameters(self) -> int:
        """Numbers in all lora_A and lora_B."""
        return sum(update.r * parameters_per_rank(update) for update in self.updates)

    def rank_choice(self, share: float | None = None) -> RankChoice:
        """Return which ranks would have kept a share of the energy; None takes `energy`.

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
        """Return the shares to show: the usual ones and the one asked for."""
        return sorted({*SHARES, self.energy})

    def _parameters_at(self, ranks: Mapping[str, int]) -> int:
        return sum(
            min(ranks[update.path], update.r) * parameters_per_rank(update)
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
    """Measure spectra, ranks, subspaces and, with the base's weights, amplification.

    Args:
        adapter: A trained adapter.
        base_weights: W0 by module path, oriented as ΔW: (out, in), or (dim, vocabulary) for an
            embedding; float32, or any dtype that converts to it. None leaves amplification out.
        name: What to call it in a report.
        energy: Share of Σ‖ΔW‖_F² that the recommended rank keeps.
        seed: Of the random controls.

    Raises:
        ConfigError: `energy` is not above 0 and at most 1.
        AdapterFileError: The adapter was never trained, or its factors are not finite.
        AdapterMismatchError: A weight of the base has another shape than its update.

    Source: Hu et al. 2021, arXiv:2106.09685, section 7.
    """
    require_share(energy)
    updates = tuple(update_svds(adapter))
    if all(update.is_zero for update in updates):
        raise AdapterFileError(
            f"Nothing to analyse in {name}: got ΔW = 0 in all {len(updates)} modules, expected a "
            "trained adapter. lora_B (of an embedding lora_A) starts at zero, so this one was "
            "never trained and changes nothing. Train it first."
        )
    found = () if base_weights is None else tuple(amplifications(updates, base_weights, seed))
    similarities = tuple(layer_similarities(updates, seed))
    return AdapterAnalysis(name, adapter, energy, updates, similarities, found)


def parameters_per_rank(update: UpdateSvd) -> int:
    """Return how many numbers lora_A and lora_B have for each rank."""
    return update.in_features + update.out_features


def pooled_norm(updates: Sequence[UpdateSvd]) -> float:
    """Return √Σ‖ΔW‖_F² over several modules."""
    return sum(update.norm**2 for update in updates) ** 0.5
