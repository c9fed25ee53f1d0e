"""Follow metrics.jsonl while a run writes it: only what is new is read and parsed."""

from __future__ import annotations

import json
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lorakit.recipes.search_sections import lower_is_better

_REMEMBERED_BYTES = 64
"""Bytes before the position read to; if they change, the file is another one."""

_PLACES = frozenset({"event", "step", "epoch", "wall_s", "count"})
"""Keys that say where a row belongs; all others are measured values."""


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number and not a truth value."""
    number = _number(value)
    return number is not None and math.isfinite(number)


def parse_row(line: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object of a line, or None if it is something else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


@dataclass(eq=False)
class Series:
    """One measured value over the optimizer steps, oldest first; steps rise strictly."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))
    """NaN where the run measured something that is not a number."""
    revision: int = 0
    """Changes when points are removed, because a run was resumed from an earlier step."""

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: float, value: float) -> None:
        """Add a point; it replaces points of the same step and later ones."""
        if self.steps and step <= self.steps[-1]:
            kept = bisect_left(self.steps, step)
            del self.steps[kept:], self.values[kept:]
            self.revision += 1
        self.steps.append(step)
        self.values.append(value)

    @property
    def last(self) -> float | None:
        """The newest value, or None if there is none or it is not a number."""
        return self.values[-1] if self.values and math.isfinite(self.values[-1]) else None


class MetricLog:
    """The series of one run, kept up to date by `read`.

    Rows that are not complete are read when they are. A file that shrinks or is replaced, as a
    resumed run does, is read from its beginning. No clock is looked at.
    """

    def __init__(self, path: Path):
        """Follow a file.

        Args:
            path: metrics.jsonl of a run; it may appear later.
        """
        self.path = path
        self._begin()

    def _begin(self) -> None:
        self.series: dict[str, Series] = {}
        """By the key of the row, such as "loss" or "eval_accuracy"."""
        self.evaluations: dict[int, dict[str, Any]] = {}
        """Rows of evaluations by step."""
        self.summary: dict[str, Any] = {}
        """The row that a run writes at its end; empty before."""
        self.guessing: dict[str, Any] = {}
        """The row with the metrics of guessing; empty without one."""
        self.step, self.epoch, self.wall_s = 0, 0.0, 0.0
        """Place of the newest row."""
        self.problem: str | None = None
        """What is wrong with the file, or None."""
        self._offset, self._lines = 0, 0
        self._identity: tuple[int, int] | None = None
        self._before = b""

    def read(self) -> bool:
        """Read the complete rows that are new.

        Returns: Whether anything has changed.
        """
        try:
            with self.path.open("rb") as file:
                return self._read_open(file)
        except FileNotFoundError:
            had_rows = self._lines > 0
            self._begin()
            return had_rows
        except OSError as error:
            problem = f"Cannot read {self.path}: {error.strerror}. Check its permissions."
            is_new, self.problem = problem != self.problem, problem
            return is_new

    def _read_open(self, file: BinaryIO) -> bool:
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino)
        is_same = identity == self._identity and self._has_same_beginning(file, status.st_size)
        if is_same and status.st_size == self._offset:
            return False
        had_rows = self._lines > 0
        if not is_same:
            self._begin()
            self._identity = identity
        file.seek(self._offset)
        new = file.read(status.st_size - self._offset)
        complete = new[: new.rfind(b"\n") + 1]
        for line in complete.split(b"\n")[:-1]:
            self._lines += 1
            self._take(line)
        self._offset += len(complete)
        self._before = (self._before + complete)[-_REMEMBERED_BYTES:]
        return bool(complete) or (had_rows and not is_same)

    def _has_same_beginning(self, file: BinaryIO, size: int) -> bool:
        if size < self._offset:
            return False
        file.seek(self._offset - len(self._before))
        return file.read(len(self._before)) == self._before

    def _take(self, line: bytes) -> None:
        row = parse_row(line)
        if row is None or not is_number(row.get("step")):
            self.problem = self.problem or (
                f"Cannot read all of {self.path}: line {self._lines} is not a JSON object with a "
                "step. The other lines are shown. Delete that line to resume the run."
            )
            return
        step, kind = float(row["step"]), row.get("event")
        if kind == "guessing":
            self.guessing = row
            return
        self.step = int(step)
        self.epoch = float(row["epoch"]) if is_number(row.get("epoch")) else self.epoch
        self.wall_s = float(row["wall_s"]) if is_number(row.get("wall_s")) else self.wall_s
        if kind == "summary":
            self.summary = row
            return
        self.summary = {}
        if kind == "evaluation":
            later = [other for other in self.evaluations if other >= self.step]
            for other in later:
                del self.evaluations[other]
            self.evaluations[self.step] = row
        for key, value in row.items():
            if key in _PLACES:
                continue
            number = math.nan if value is None else _number(value)
            if number is not None:
                series = self.series.get(key) or self.series.setdefault(key, Series())
                series.add(step, number)


def _number(value: Any) -> float | None:
    """Return a number as float, with NaN for one that is not finite; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def kept_metrics(log: MetricLog, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers that describe a run's adapter, as far as it has got.

    The metrics are those of the best evaluation if the run keeps its best weights, else of the
    last one; beside them are the mean training loss, the tokens per second and the seconds.

    Args:
        log: The log of the run.
        recipe: Its recipe as plain values.
    """
    row = kept_evaluation(log, recipe) or {}
    values = {key: value for key, value in row.items() if key.startswith("eval_")}
    values |= {key: log.summary[key] for key in log.summary if key not in _PLACES}
    if "loss" in log.series and "train_loss" not in values:
        values["train_loss"] = log.series["loss"].last
    values["wall_s"] = log.wall_s
    return {key: float(value) for key, value in values.items() if is_number(value)}


def kept_evaluation(log: MetricLog, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the row of the evaluation whose weights the run keeps, or None without one."""
    training = recipe.get("training")
    training = training if isinstance(training, Mapping) else {}
    rows = [row for step, row in log.evaluations.items() if step > 0]
    metric = training.get("metric_for_best_model")
    if not rows or not metric or not training.get("load_best_model_at_end"):
        return rows[-1] if rows else None
    key = metric if str(metric).startswith("eval_") else f"eval_{metric}"
    known = [row for row in rows if (_number(row.get(key)) is not None)]
    if not known:
        return rows[-1]
    is_greater = training.get("greater_is_better", not lower_is_better(key))
    return (max if is_greater else min)(known, key=lambda row: row[key])
