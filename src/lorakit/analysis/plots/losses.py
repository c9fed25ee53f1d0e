"""loss.png: loss, main metric and learning rate over the optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.analysis.guessing import EVENT
from lorakit.analysis.metric_text import metric_text
from lorakit.analysis.plots.figures import new_figure
from lorakit.analysis.plots.png import save_png
from lorakit.recipes.run_directory import RunDirectory

_LOSS_INCHES, _METRIC_INCHES, _RATE_INCHES = 4.1, 1.9, 1.3
_DPI = 120

_METRICS = ("eval_accuracy", "eval_rougeL", "eval_mean_token_accuracy")
"""Metrics to draw if the loss selects the best checkpoint; the first that exists is drawn."""

_VALIDATION = "tab:orange"

Points = list[tuple[float, float]]
"""(optimizer step, value)."""


def plot_losses(run: RunDirectory, best_step: int | None = None, metric: str | None = None) -> None:
    """Plot loss, main metric and learning rate over the optimizer steps into loss.png.

    The metric and the learning rate have panels below the loss if the run logged them.

    Args:
        run: Run whose metrics are read.
        best_step: Optimizer step of the kept checkpoint; None marks none.
        metric: Metric that selects the best checkpoint, with its "eval_" prefix.
    """
    from matplotlib.ticker import MaxNLocator

    rows = run.metrics()
    measured = [row for row in rows if row.get("event") != EVENT]
    main = main_metric(measured, metric)
    rates = _points(measured, "learning_rate")
    heights = [_LOSS_INCHES, *[_METRIC_INCHES] * (main is not None), *[_RATE_INCHES] * bool(rates)]
    figure = new_figure(sum(heights) + 0.4)
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    panels: list[Any] = list(grid.flat)
    _line(panels[0], _points(measured, "loss"), label="training", color="tab:blue")
    _line(
        panels[0],
        _points(measured, "eval_loss"),
        label="validation",
        color=_VALIDATION,
        marker="o",
    )
    panels[0].set_ylabel("loss\n(mean cross-entropy, nats)")
    panels[0].set_title(f"Training of {run.path.name}")
    if main is not None:
        _draw_metric(panels[1], rows, main, InferenceSettings.load(run.adapter))
    if rates:
        _line(panels[-1], rates, color="tab:green")
        panels[-1].set_ylabel("learning\nrate")
        panels[-1].set_ylim(0, 1.1 * max(rate for _, rate in rates) or 1)
        panels[-1].ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    for axes in panels:
        axes.grid(alpha=0.3)
        if best_step is not None:
            axes.axvline(best_step, linestyle=":", color="gray", label=f"kept: step {best_step}")
    if panels[0].lines:
        panels[0].legend()
    panels[-1].set_xlabel("optimizer step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    save_png(figure, run.loss_plot, _DPI)


def main_metric(rows: Sequence[Mapping[str, Any]], wanted: str | None) -> str | None:
    """Return the metric to draw besides the loss, or None if there is none.

    >>> main_metric([{"eval_loss": 0.7, "eval_accuracy": 0.5}], "eval_loss")
    'eval_accuracy'
    """
    names = (f"eval_{wanted.removeprefix('eval_')}",) if wanted else ()
    known = {key for row in rows for key, value in row.items() if value is not None}
    candidates = (
        name for name in (*names, *_METRICS) if name in known and not name.endswith("_loss")
    )
    return next(candidates, None)


def _draw_metric(
    axes: Any, rows: Sequence[Mapping[str, Any]], metric: str, settings: InferenceSettings
) -> None:
    """Draw the metric of each evaluation, and that of guessing if known."""
    measured = _points([row for row in rows if row.get("event") != EVENT], metric)
    _line(axes, measured, color=_VALIDATION, marker="o")
    guessed = _points([row for row in rows if row.get("event") == EVENT], metric)
    if guessed:
        axes.axhline(guessed[-1][1], color="0.35", linestyle="--", linewidth=1, label="guessing")
        axes.legend(loc="best", fontsize=8)
    name = metric_text(metric, settings)
    axes.set_ylabel("\n".join(("validation", *name.rsplit(" ", 1))))


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def _line(axes: Any, points: Points, marker: str = "", **look: Any) -> None:
    """Draw a line, or a dot for a single point."""
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker="o" if len(points) == 1 else marker, **look)
