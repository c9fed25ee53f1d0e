"""Which series of a run are drawn together, under which names and in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorakit.analysis.metric_text import metric_name
from lorakit.runs.metric_log import MetricLog, Series

_GB = 1e-9
_OWN_PANELS = {
    "learning_rate": ("Learning rate", "", 1.0),
    "grad_norm": ("Gradient norm", "", 1.0),
    "train_tokens_per_s": ("Tokens per second", "", 1.0),
    "peak_memory_bytes": ("Peak memory", "GB", _GB),
}
"""Title, unit and factor to that unit of what has a panel to itself."""
_ORDER = ("Loss", "Validation metrics", "F1 by class", *(one[0] for one in _OWN_PANELS.values()))


@dataclass
class Panel:
    """One picture of lines over the steps."""

    title: str
    unit: str = ""
    scale: float = 1.0
    """Factor from the values of the series to the unit."""
    series: dict[str, Series] = field(default_factory=dict)
    """By the name of the line."""
    levels: dict[str, float] = field(default_factory=dict)
    """Values that do not change, by the name of their line."""

    @property
    def from_zero(self) -> bool:
        """Whether its axis begins at 0: memory is an amount to compare with the plan."""
        return self.unit == "GB"

    @property
    def place(self) -> int:
        """Its place on the page."""
        return _ORDER.index(self.title) if self.title in _ORDER else len(_ORDER)


def panels(log: MetricLog, planned_bytes: float | None = None) -> list[Panel]:
    """Return the panels of a run, each with at least one series.

    Args:
        log: The log of the run.
        planned_bytes: Its planned peak memory.
    """
    found: dict[str, Panel] = {}
    for key, series in log.series.items():
        title, name, unit, scale = _where(key, series)
        found.setdefault(title, Panel(title, unit, scale)).series[name] = series
    _add_levels(found, log.guessing, planned_bytes)
    return sorted(found.values(), key=lambda panel: panel.place)


def _where(key: str, series: Series) -> tuple[str, str, str, float]:
    """Return the title of a series' panel, the name of its line, and unit and scale."""
    if key in _OWN_PANELS:
        title, unit, scale = _OWN_PANELS[key]
        return title, title.lower(), unit, scale
    if key in ("loss", "eval_loss"):
        return "Loss", "training" if key == "loss" else "validation", "", 1.0
    name = metric_name(key)
    if not key.startswith("eval_"):
        return name.capitalize(), name, "", 1.0
    if key.startswith("eval_f1_"):
        return "F1 by class", key.removeprefix("eval_f1_"), "", 1.0
    is_share = all(0 <= value <= 1 for value in series.values if math.isfinite(value))
    return ("Validation metrics" if is_share else f"Validation {name}"), name, "", 1.0


def _add_levels(
    found: Mapping[str, Panel], guessing: Mapping[str, object], planned_bytes: float | None
) -> None:
    for title, key in (("Loss", "eval_loss"), ("Validation metrics", "eval_accuracy")):
        value = guessing.get(key)
        if title in found and isinstance(value, (int, float)):
            name = "guessing" if title == "Loss" else "accuracy of guessing"
            found[title].levels[name] = float(value)
    if "Peak memory" in found and planned_bytes is not None:
        found["Peak memory"].levels["planned"] = planned_bytes
