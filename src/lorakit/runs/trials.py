"""The trials of a search or a study, read from their directory while they run."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from lorakit.errors import MissingFileError
from lorakit.recipes import yaml_text
from lorakit.recipes.recipe import Recipe, load_written_recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import SearchConfig, StudyConfig, TrialsConfig
from lorakit.runs.metric_log import MetricLog, Series

_KINDS: tuple[Literal["search", "study"], ...] = ("search", "study")
BEST_FILES = {"search": "best.yaml", "study": "recommended.yaml"}
"""Recipe that a search or study writes at its end."""
_EARLY_STATUSES = ("waiting", "running")


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    name: str
    status: str
    """"waiting", "running", "finished", "stopped" (worse than others) or "failed"."""
    values: Mapping[str, str | float]
    """By recipe key; numbers where the text is one."""
    best: float | None
    """Metric of its best epoch, or None before the first evaluation."""
    epochs: int
    wall_s: float
    error: str
    curve: Series = field(repr=False)
    """The metric by epoch; `steps` are epochs."""


@dataclass(frozen=True)
class TrialTable:
    """All trials of a search or study."""

    kind: Literal["search", "study"]
    metric: str
    is_minimized: bool
    keys: tuple[str, ...]
    """Recipe keys whose values differ between trials."""
    trials: tuple[TrialRow, ...]
    best: TrialRow | None
    best_recipe: Path | None
    """The recipe that the finished search has written, or None."""
    problem: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether every trial has ended and the best recipe is there."""
        ended = all(trial.status not in _EARLY_STATUSES for trial in self.trials)
        return ended and self.best_recipe is not None


def kind_of(directory: Path) -> Literal["search", "study"] | None:
    """Return what a directory holds, or None if neither a search nor a study."""
    return next((kind for kind in _KINDS if (directory / f"{kind}.yaml").is_file()), None)


def best_recipe_in(directory: Path) -> Path | None:
    """Return the recipe that a search or study has written at its end, or None."""
    kind = kind_of(directory)
    file = None if kind is None else directory / BEST_FILES[kind]
    return file if file is not None and file.is_file() else None


def recipe_of_best(directory: Path) -> Recipe:
    """Return the recipe that a search or study has found, or with the values of its best trial yet.

    It has all examples and the comparison with the base, which trials leave out.

    Raises:
        MissingFileError: It is not a search or study, or no trial has been evaluated.
        ConfigError: A recipe cannot be read.
    """
    found = best_recipe_in(directory)
    if found is not None:
        return load_written_recipe(found)
    reader = TrialReader(directory)
    best = reader.read().best
    if best is None:
        raise MissingFileError(
            f"No best trial in {directory}: none has been evaluated yet. Wait for the first "
            "evaluation."
        )
    trial = RunDirectory.open(directory / "trials" / best.name).recipe()
    searched = load_written_recipe(directory / f"{reader.kind}.yaml")
    changes = {
        "data.max_train_rows": searched.data.max_train_rows,
        "evaluation": searched.evaluation.model_dump(mode="json"),
        "output": searched.output,
    }
    return trial.with_changes(changes, f"the recipe of {best.name}")


class TrialReader:
    """Reads a search or study again and again; only what is new of each trial's metrics."""

    def __init__(self, directory: Path):
        """Open a directory.

        Raises:
            MissingFileError: It holds neither a search nor a study.
            ConfigError: Its recipe cannot be read.
        """
        kind = kind_of(directory)
        if kind is None:
            raise MissingFileError(
                f"No search in {directory}: there is neither search.yaml nor study.yaml, expected "
                "a directory that `lorakit tune` or `lorakit study` wrote. Check the path."
            )
        self.directory = directory
        self.kind: Literal["search", "study"] = kind
        self.settings = _settings(directory / f"{kind}.yaml", kind)
        self._logs: dict[str, MetricLog] = {}

    def read(self) -> TrialTable:
        """Return the trials as they are now."""
        rows, problem = self._rows()
        keys = _value_keys(rows)
        trials = tuple(self._trial(row, keys) for row in rows)
        differing = tuple(
            key for key in keys if len({trial.values.get(key) for trial in trials}) > 1
        )
        return TrialTable(
            self.kind,
            self.settings.metric,
            self.settings.is_minimized,
            differing or keys,
            trials,
            self._best(trials),
            best_recipe_in(self.directory),
            problem,
        )

    def _rows(self) -> tuple[list[dict[str, str]], str | None]:
        path = self.directory / "trials.csv"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return [], None
        except (OSError, UnicodeDecodeError) as error:
            return [], f"Cannot read {path}: {error}, expected the table of the trials."
        reader = csv.DictReader(io.StringIO(text), restval="", restkey="")
        try:
            rows = [row for row in reader if "" not in row]
        except csv.Error as error:
            return [], f"Cannot read {path}: {error}, expected the table of the trials."
        names = reader.fieldnames or ()
        missing = [name for name in ("trial", "status", "epochs") if name not in names]
        if missing:
            return [], (
                f"Cannot read {path}: got no column {missing[0]!r}, expected the table that a "
                "search writes. Resume the search, which writes it again."
            )
        return rows, None

    def _trial(self, row: Mapping[str, str], keys: Sequence[str]) -> TrialRow:
        name, metric = row["trial"], self.settings.metric
        curve = self._curve(name)
        values = [value for value in curve.values if math.isfinite(value)]
        best = (min if self.settings.is_minimized else max)(values) if values else None
        if best is None:
            best = _as_number(row.get(f"best_{metric}", ""))
        return TrialRow(
            name,
            row["status"],
            {
                key: number if (number := _as_number(row[key])) is not None else row[key]
                for key in keys
            },
            best,
            int(_as_number(row["epochs"]) or 0),
            _as_number(row.get("wall_s", "")) or 0.0,
            row.get("error", ""),
            curve,
        )

    def _curve(self, name: str) -> Series:
        """Return the metric of a trial by epoch."""
        curve = Series()
        folder = self.directory / "trials" / name
        if Path(name).name != name or name == "..":  # a table may come from anywhere
            return curve
        log = self._logs.setdefault(name, MetricLog(folder / "metrics.jsonl"))
        log.read()
        for step, row in log.evaluations.items():
            value, epoch = row.get(self.settings.metric), row.get("epoch")
            if step > 0 and isinstance(value, (int, float)) and isinstance(epoch, (int, float)):
                curve.add(epoch, value)
        return curve

    def _best(self, trials: Sequence[TrialRow]) -> TrialRow | None:
        known = [t for t in trials if t.best is not None and t.status != "failed"]
        if not known:
            return None
        choose = min if self.settings.is_minimized else max
        return choose(known, key=lambda trial: cast(float, trial.best))


def _settings(path: Path, kind: str) -> TrialsConfig:
    section = yaml_text.read_mapping(path).get(kind) or {}
    config = SearchConfig if kind == "search" else StudyConfig
    return config.parse(section, f"{path}, section {kind}")


def _value_keys(rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Return the columns between the status and the epochs: the values of the trials."""
    columns = list(rows[0]) if rows else []
    if "status" not in columns or "epochs" not in columns:
        return ()
    return tuple(columns[columns.index("status") + 1 : columns.index("epochs")])


def _as_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
