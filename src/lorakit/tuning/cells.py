"""The grid of a study: its cells and their trial values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorakit.recipes.search_sections import Distribution
from lorakit.tuning.space import as_list
from lorakit.tuning.target_sets import TargetSet

_LAYERS = "lora.layers_to_transform"


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
    def size(self) -> tuple[int, int]:
        """What makes a cell small: few layers, as a step costs, then few parameters."""
        return (self.target_set.layer_count, self.parameters)

    @property
    def changes(self) -> dict[str, Any]:
        """The modules, and the layers if a study varies them, by recipe key."""
        values = {"lora.target_modules": as_list(self.target_set.target_modules)}
        return values | ({_LAYERS: as_list(self.target_set.layers)} if self.size[0] else {})

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
        changed = self.cells[0].changes if self.cells else ()
        return ("lora.r", *changed, "lora.lora_alpha", "training.seed")

    @property
    def distributions(self) -> dict[str, Distribution]:
        """Values of each key, for a table."""
        sets = dict.fromkeys(cell.target_set.label for cell in self.cells)
        layers = dict.fromkeys(cell.target_set.layers for cell in self.cells if cell.size[0])
        return {
            "lora.r": Distribution(choice=tuple(sorted({cell.rank for cell in self.cells}))),
            "lora.target_modules": Distribution(choice=tuple(sets)),
            **({_LAYERS: Distribution(choice=tuple(map(as_list, layers)))} if layers else {}),
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
            wanted = {"lora.r": cell.rank, **cell.changes}
            if all(values[key] == value for key, value in wanted.items()):
                return index
        raise LookupError(values)

    def trial_values(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a trial by recipe key."""
        index, seed = divmod(sample["run"], len(self.seeds))
        cell = self.cells[index]
        return {
            "lora.r": cell.rank,
            **cell.changes,
            "lora.lora_alpha": self.scaling * cell.rank,
            "training.seed": self.seeds[seed],
        }
