"""The grid of a study: its cells and their trial values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorakit.recipes.search_sections import Distribution
from lorakit.tuning.target_sets import TargetSet


@dataclass(frozen=True)
class Cell:
    """One rank on one set of modules, with the results of each seed."""

    column: int
    """Rank of the column; with an equal budget, that of the widest set."""
    rank: int
    target_set: TargetSet
    values: tuple[float, ...] = ()
    """Metric of the best epoch for each seed that did not fail."""
    failed: int = 0

    @property
    def parameters(self) -> int:
        """Parameters of the factors: r times the sum of in + out."""
        return self.rank * self.target_set.parameters_per_rank

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN if all failed."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation over the seeds; 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(len(self.values)) if self.values else 0.0


@dataclass(frozen=True)
class CellSpace:
    """Grid of a study: each sample is a cell with a seed."""

    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    scaling: float
    """lora_alpha / r, the same at every rank."""
    where: str = "study"

    @property
    def keys(self) -> tuple[str, ...]:
        """Recipe keys that vary."""
        return ("lora.r", "lora.target_modules", "lora.lora_alpha", "training.seed")

    @property
    def distributions(self) -> dict[str, Distribution]:
        """Values of each key, for a table."""
        sets = dict.fromkeys(cell.target_set.label for cell in self.cells)
        return {
            "lora.r": Distribution(choice=tuple(sorted({cell.rank for cell in self.cells}))),
            "lora.target_modules": Distribution(choice=tuple(sets)),
            "lora.lora_alpha": Distribution(same_as="lora.r", times=self.scaling),
            "training.seed": Distribution(choice=self.seeds),
        }

    def for_ray(self, algorithm: str) -> dict[str, Any]:
        """Return the grid for Ray Tune; the seeds of a cell are adjacent."""
        from ray import tune

        return {"run": tune.grid_search(list(range(len(self.cells) * len(self.seeds))))}

    def cell_of(self, values: Mapping[str, Any]) -> int:
        """Return the index of the cell with the values of a trial."""
        for index, cell in enumerate(self.cells):
            modules = cell.target_set.target_modules
            listed = list(modules) if isinstance(modules, tuple) else modules
            if (values["lora.r"], values["lora.target_modules"]) == (cell.rank, listed):
                return index
        raise LookupError(values)

    def trial_values(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a trial by recipe key."""
        index, seed = divmod(sample["run"], len(self.seeds))
        cell = self.cells[index]
        modules = cell.target_set.target_modules
        return {
            "lora.r": cell.rank,
            "lora.target_modules": list(modules) if isinstance(modules, tuple) else modules,
            "lora.lora_alpha": self.scaling * cell.rank,
            "training.seed": self.seeds[seed],
        }
