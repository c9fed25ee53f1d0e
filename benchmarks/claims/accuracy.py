"""Accuracies of the quality runs by configuration: mean, spread, and differences seed by seed."""

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.claims.quality_runs import FULL, LORA, QualityRun
from lorakit.quickstart.compare import FULL as FULL_THERE
from lorakit.quickstart.run import LORA as LORA_THERE

QUICKSTART = "quickstart.csv"
Kind = tuple[str, int, str]
"""Method, rank and modules."""


@dataclass(frozen=True)
class Cell:
    """The runs of one configuration, a seed each.

    Attributes:
        kind: Method, rank and modules.
        runs: By seed.
    """

    kind: Kind
    runs: dict[int, QualityRun]

    @property
    def accuracies(self) -> list[float]:
        """Accuracy of each seed, in [0, 1]."""
        return [run.accuracy for run in self.runs.values()]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; 0 for a single one."""
        return statistics.stdev(self.accuracies) if len(self.runs) > 1 else 0.0

    @property
    def example(self) -> QualityRun:
        """One of the runs."""
        return next(iter(self.runs.values()))


def compared_runs(runs: Sequence[QualityRun]) -> list[QualityRun]:
    """Return the runs that can be compared: of one length, each method at one learning rate.

    The length is that of the newest run, the learning rate the one that most runs of its method
    have; of equals the one that did best.
    """
    if not runs:
        return []
    newest = runs[-1].wanted
    alike = [
        run
        for run in runs
        if (run.wanted.epochs, run.wanted.train_examples) == (newest.epochs, newest.train_examples)
    ]
    kept = []
    for method in (FULL, LORA):
        by_rate: dict[float, list[QualityRun]] = {}
        for run in alike:
            if run.wanted.method == method:
                by_rate.setdefault(run.wanted.learning_rate, []).append(run)
        kept += max(by_rate.values(), key=lambda group: (len(group), group[0].accuracy), default=[])
    return kept


def cells(runs: Iterable[QualityRun]) -> dict[Kind, Cell]:
    """Return the runs by configuration."""
    found: dict[Kind, Cell] = {}
    for run in runs:
        kind = run.wanted.method, run.wanted.r, run.wanted.targets
        found.setdefault(kind, Cell(kind, {})).runs[run.wanted.seed] = run
    return found


def gaps(first: Cell, second: Cell) -> list[float]:
    """Return by how many points the first is more accurate, seed by seed."""
    seeds = [seed for seed in first.runs if seed in second.runs]
    return [100 * (first.runs[seed].accuracy - second.runs[seed].accuracy) for seed in seeds]


def best(candidates: Iterable[Cell]) -> Cell | None:
    """Return the cell with the highest mean."""
    return max(candidates, key=lambda cell: cell.mean, default=None)


def quickstart_gap(results: Path) -> float | None:
    """Return by how many points the quickstart's LoRA is more accurate than its full fine-tuning.

    That is the same task, trained for longer; `tools/measure_quickstart.py` measures it.
    """
    path = results / QUICKSTART
    if not path.exists():
        return None
    accuracy: dict[tuple[str, str], float] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            accuracy[line["method"], line["seed"]] = float(line["accuracy"])
    found = [
        100 * (accuracy[LORA_THERE, seed] - value)
        for (method, seed), value in accuracy.items()
        if method == FULL_THERE and (LORA_THERE, seed) in accuracy
    ]
    return statistics.mean(found) if found else None
