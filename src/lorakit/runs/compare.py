"""Compare runs: in what their recipes differ, and how a metric depends on a field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lorakit.errors import LorakitError
from lorakit.recipes import yaml_text
from lorakit.runs.metric_log import MetricLog, is_number, kept_metrics

MISSING = "—"
"""Shown for a field that a recipe does not have."""


@dataclass(frozen=True)
class ComparedRun:
    """One of the compared runs."""

    name: str
    """Its path below the folder of runs."""
    fields: Mapping[str, Any]
    """Values of its recipe by dotted key."""
    log: MetricLog
    metrics: Mapping[str, float]
    """See `kept_metrics`."""
    problem: str | None = None
    """Why its recipe cannot be read, or None."""


@dataclass(frozen=True)
class Difference:
    """A recipe field that is not the same in all runs."""

    key: str
    values: tuple[str, ...]
    """Value of each run as text, in the order of the runs."""


def read_run(path: Path, name: str) -> ComparedRun:
    """Read a run; a damaged one has a problem instead of fields.

    Args:
        path: The run directory.
        name: How it is called.
    """
    log = MetricLog(path / "metrics.jsonl")
    log.read()
    try:
        recipe = yaml_text.read_mapping(path / "recipe.yaml")
    except (LorakitError, OSError) as error:
        return ComparedRun(name, {}, log, kept_metrics(log, {}), str(error))
    return ComparedRun(name, flatten(recipe), log, kept_metrics(log, recipe), log.problem)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key; lists stay whole.

    >>> flatten({"lora": {"r": 8}, "model": "m"})
    {'lora.r': 8, 'model': 'm'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(runs: Sequence[ComparedRun]) -> list[Difference]:
    """Return the fields in which recipes differ, in the order of the recipes' keys.

    The output is left out: it always differs.
    """
    keys = dict.fromkeys(key for run in runs for key in run.fields if key != "output")
    rows = (Difference(key, tuple(_text(run, key) for run in runs)) for key in keys)
    return [row for row in rows if len(set(row.values)) > 1]


def _text(run: ComparedRun, key: str) -> str:
    return value_text(run.fields[key]) if key in run.fields else MISSING


def value_text(value: Any) -> str:
    """Return a value of a recipe as text on one line.

    >>> value_text(["q_proj", "v_proj"]), value_text(None), value_text(0.0002)
    ('q_proj, v_proj', 'null', '0.0002')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(value_text(part) for part in cast(Sequence[Any], value))
    if isinstance(value, Mapping):
        parts = cast(Mapping[str, Any], value).items()
        return ", ".join(f"{key}: {value_text(part)}" for key, part in parts) or "{}"
    return str(value)


def metric_names(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the metrics that at least one run has, validation metrics first."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return sorted(names, key=lambda name: not name.startswith("eval_"))


def field_names(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the fields to draw a metric against: those that differ, then all other numbers."""
    differing = [row.key for row in differences(runs)]
    numbers = {
        key: None
        for run in runs
        for key, value in run.fields.items()
        if is_number(value) and key not in differing
    }
    return [*differing, *numbers]


def field_points(
    runs: Sequence[ComparedRun], key: str, metric: str
) -> list[tuple[str, float | str, float]]:
    """Return name, field and metric of each run that has both; all fields are texts if one is."""
    found = [
        (run.name, run.fields[key], run.metrics[metric])
        for run in runs
        if key in run.fields and metric in run.metrics
    ]
    if all(is_number(value) for _, value, _ in found):
        return found
    return [(name, value_text(value), number) for name, value, number in found]
