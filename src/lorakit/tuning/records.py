"""Records of trials, and their files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorakit.analysis.guessing import Reference
from lorakit.analysis.metric_text import metric_name
from lorakit.files.atomic import write_text
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import TrialsConfig
from lorakit.tuning.space import label_of

Status = Literal["waiting", "running", "finished", "stopped", "failed"]
"""A "finished" trial ran all its epochs; a "stopped" one was worse than others."""


@dataclass(frozen=True)
class TrialRecord:
    """Record of one trial."""

    name: str
    status: Status
    values: Mapping[str, Any]
    """Values by recipe key."""
    evaluations: tuple[Mapping[str, Any], ...]
    """Rows of metrics.jsonl, one for each epoch."""
    path: Path
    """Run directory of the trial."""
    error: str | None = None
    """Reason of a failed trial."""

    @property
    def epochs(self) -> int:
        """Number of epochs that the trial has run."""
        return max(1, round(self.evaluations[-1]["epoch"])) if self.evaluations else 0

    @property
    def wall_s(self) -> float:
        """Seconds from the first step to the last evaluation."""
        return float(self.evaluations[-1]["wall_s"]) if self.evaluations else 0.0

    def best(self, settings: TrialsConfig) -> Mapping[str, Any] | None:
        """Return the row of the best epoch, or None before the first evaluation."""
        rows = [row for row in self.evaluations if row.get(settings.metric) is not None]
        if not rows:
            return None
        choose = min if settings.is_minimized else max
        return choose(rows, key=lambda row: row[settings.metric])

    def best_value(self, settings: TrialsConfig) -> float | None:
        """Return the metric of the best epoch."""
        row = self.best(settings)
        return None if row is None else float(row[settings.metric])


def warning_text(what: str, metric: str, reference: Reference) -> str:
    """Return a warning that nothing was learned, with advice.

    Args:
        what: What was compared, such as "No trial".
        metric: Metric of the comparison.
        reference: Reference that was not beaten.
    """
    name = metric_name(metric)
    return (
        f"{what} beats {reference.how} ({name} {reference.metrics[metric]:.4g}) by more than "
        "chance: nothing was learned, so the choice is meaningless. Train longer, on more "
        "examples or with another learning rate, and check the labels."
    )


def evaluations_of(run: RunDirectory) -> tuple[Mapping[str, Any], ...]:
    """Return the evaluations of a run after step 0, one for each step, oldest first."""
    rows = (row for row in run.metrics() if row.get("event") == "evaluation" and row["step"] > 0)
    return tuple({row["step"]: row for row in rows}.values())


def best_record(records: Sequence[TrialRecord], settings: TrialsConfig) -> TrialRecord | None:
    """Return the trial with the best epoch, ignoring failed trials."""
    best: tuple[float, TrialRecord] | None = None
    for record in records:
        value = record.best_value(settings)
        if value is None or record.status == "failed":
            continue
        is_better = best is None or (value < best[0] if settings.is_minimized else value > best[0])
        best = (value, record) if is_better else best
    return None if best is None else best[1]


def write_trials(records: Sequence[TrialRecord], settings: TrialsConfig, path: Path) -> None:
    """Write a CSV with a row for each trial.

    Columns: the trial, its status, its values by recipe key, the epochs it ran, the best value of
    the metric with its epoch, the metrics of its last evaluation, seconds, and the error.

    Args:
        records: Records of the trials.
        settings: Settings with the metric.
        path: File to write.
    """
    keys = list(dict.fromkeys(key for record in records for key in record.values))
    metrics = dict.fromkeys(
        key
        for record in records
        for row in record.evaluations[-1:]
        for key in row
        if key.startswith("eval_")
    )
    best = f"best_{settings.metric}"
    columns = ["trial", "status", *keys, "epochs", best, "best_epoch", *metrics, "wall_s", "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        row = record.best(settings)
        last = record.evaluations[-1] if record.evaluations else {}
        writer.writerow(
            {
                "trial": record.name,
                "status": record.status,
                **{key: label_of(value) for key, value in record.values.items()},
                "epochs": record.epochs,
                best: None if row is None else row[settings.metric],
                "best_epoch": None if row is None else round(row["epoch"]),
                **{key: last.get(key) for key in metrics},
                "wall_s": record.wall_s,
                "error": record.error,
            }
        )
    write_text(path, text.getvalue())


def write_hparams(record: TrialRecord, settings: TrialsConfig) -> None:
    """Add the values and best metric of a trial to its TensorBoard files, for the HPARAMS tab."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    best = record.best_value(settings)
    directory = RunDirectory(record.path).tensorboard
    if best is None or not directory.is_dir():
        return
    values = {key: label_of(value) for key, value in record.values.items()}
    plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in values.items()}
    name = f"best/{settings.metric}"
    with SummaryWriter(str(directory), filename_suffix=".hparams") as writer:
        file_writer: Any = writer.file_writer
        for summary in hparams(plain, {name: best}):
            file_writer.add_summary(summary)
        writer.add_scalar(name, best)
