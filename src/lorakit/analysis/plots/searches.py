"""Plots of a search: parallel coordinates, the metric by parameter, learning curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorakit.analysis.metric_text import metric_name
from lorakit.analysis.plots.figures import new_figure
from lorakit.analysis.plots.png import save_png

_LOG_FROM = 20.0
"""From this ratio of its values on, a parameter is drawn on a log scale."""

_MAX_TICKS = 6
"""Up to this number of values, a parameter has a tick for each, if they do not overlap."""

_MIN_TICK_GAP = 0.05
"""Smallest share of an axis between two ticks, so that their numbers do not overlap."""

_MAX_LEGEND = 24
"""Largest number of trials whose curves have a legend."""

_MARKERS = {"finished": "o", "stopped": "v"}
_BEST = "#c1272d"
_RED_COLOURS = (6, 7)
"""Indices of the palette whose colours are too similar to that of the best trial."""

_LIGHTEST = 0.9
"""Upper end of the colour map, from 0 to 1: lighter colours are invisible on white."""


@dataclass(frozen=True)
class PlottedTrial:
    """Values of a trial for the plots."""

    name: str
    status: str
    values: Mapping[str, Any]
    """Numbers and strings by recipe key."""
    curve: tuple[tuple[float, float], ...]
    """(epoch, metric) after each epoch."""


def plot_search(
    trials: Sequence[PlottedTrial],
    metric: str,
    is_minimized: bool,
    directory: Path,
    log_keys: Collection[str] = (),
) -> tuple[Path, ...]:
    """Plot a search as three PNGs.

    Args:
        trials: All trials; those without an evaluation are omitted.
        metric: Metric of the comparison, such as "eval_loss".
        is_minimized: Whether lower values are better.
        directory: Directory of the plots.
        log_keys: Parameters whose space is logarithmic.

    Returns:
        Files written; none if nothing was evaluated.
    """
    with_curve = [trial for trial in trials if trial.curve]
    if not with_curve:
        return ()
    choose = min if is_minimized else max
    best_of = {trial.name: choose(value for _, value in trial.curve) for trial in with_curve}
    best = choose(with_curve, key=lambda trial: best_of[trial.name])
    name = f"validation {metric_name(metric)}"
    figures = {
        "parallel_coordinates.png": _parallel(
            with_curve, best_of, best, name, is_minimized, log_keys
        ),
        "metric_by_parameter.png": _by_parameter(with_curve, best_of, best, name, log_keys),
        "learning_curves.png": _curves(with_curve, best, name),
    }
    paths = []
    for file, figure in figures.items():
        save_png(figure, directory / file)
        paths.append(directory / file)
    return tuple(paths)


@dataclass(frozen=True)
class _Axis:
    """Maps the values of one parameter to positions from 0 to 1."""

    key: str
    labels: tuple[str, ...]
    """Ordered labels of a parameter of strings; empty for numbers."""
    low: float
    high: float
    is_log: bool
    few: tuple[float, ...] = ()
    """Values of a numeric parameter that has only a few."""

    def place(self, value: Any) -> float:
        if self.labels:
            return (self.labels.index(str(value)) + 0.5) / len(self.labels)
        if self.high == self.low:
            return 0.5
        low, high, at = (
            (math.log(self.low), math.log(self.high), math.log(value))
            if self.is_log
            else (self.low, self.high, float(value))
        )
        return (at - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.labels:
            return [(self.place(label), _wrap_label(label)) for label in self.labels]
        places = [self.place(value) for value in self.few]
        if self.few and all(high - low >= _MIN_TICK_GAP for low, high in pairwise(places)):
            return [(at, _number(value)) for at, value in zip(places, self.few, strict=True)]
        shares = (0, 0.25, 0.5, 0.75, 1)
        values = [
            self.low * (self.high / self.low) ** share
            if self.is_log
            else self.low + (self.high - self.low) * share
            for share in shares
        ]
        return [(share, _number(value)) for share, value in zip(shares, values, strict=True)]


def _axis(key: str, values: Sequence[Any], *, is_log: bool = False) -> _Axis:
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return _Axis(key, tuple(sorted({str(value) for value in values})), 0, 1, False)
    low, high = float(min(numbers)), float(max(numbers))
    distinct = tuple(sorted({float(value) for value in numbers}))
    few = distinct if len(distinct) <= _MAX_TICKS else ()
    is_log = low > 0 and (is_log or high / low >= _LOG_FROM)
    return _Axis(key, (), low, high, is_log, few)


def _parallel(
    trials: Sequence[PlottedTrial],
    best_of: Mapping[str, float],
    best: PlottedTrial,
    metric: str,
    is_minimized: bool,
    log_keys: Collection[str],
) -> Any:
    from matplotlib.patheffects import withStroke

    axes_of = [
        _axis(key, [t.values[key] for t in trials], is_log=key in log_keys)
        for key in trials[0].values
    ]
    axes_of.append(_axis(metric, [best_of[trial.name] for trial in trials]))
    figure = new_figure(5.2, max(7.0, 2.1 * len(axes_of)))
    axes = figure.subplots()
    colour = _colours(best_of.values(), figure, axes, metric, is_minimized)
    for trial in trials:
        places = [axis.place(trial.values[axis.key]) for axis in axes_of[:-1]]
        places.append(axes_of[-1].place(best_of[trial.name]))
        is_best = trial is best
        axes.plot(
            range(len(places)),
            places,
            color=_BEST if is_best else colour(best_of[trial.name]),
            linewidth=2.8 if is_best else 1.4,
            linestyle="-" if trial.status == "finished" else "--",
            zorder=3 if is_best else 2,
            alpha=1 if is_best else 0.85,
        )
    for number, axis in enumerate(axes_of):
        axes.axvline(number, color="0.4", linewidth=1, zorder=1)
        for place, label in axis.ticks():
            axes.plot([number - 0.02, number + 0.02], [place, place], color="0.4", linewidth=1)
            axes.annotate(
                label,
                (number, place),
                xytext=(5, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                path_effects=[withStroke(linewidth=3, foreground="white")],
                zorder=4,
            )
    names = [_short(axis.key) + ("\n(log scale)" if axis.is_log else "") for axis in axes_of]
    names[-1] = f"best {metric}"
    axes.set_xticks(range(len(axes_of)), names)
    axes.set_xlim(-0.15, len(axes_of) - 0.6)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    stopped = "; dashed: stopped early" if any(t.status != "finished" for t in trials) else ""
    axes.set_title(
        f"Parameters of {_count(trials)}, and the best {metric} of each\n"
        f"red: the best ({best.name}){stopped}",
        fontsize=11,
    )
    return figure


def _colours(values: Any, figure: Any, axes: Any, metric: str, is_minimized: bool) -> Any:
    """Add a colour bar, and return a function from the metric to a colour, dark for good values."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    ordered = sorted(values)
    # With a diverged trial, all others would have the same colour.
    spread = ordered[: max(2, math.ceil(0.8 * len(ordered)))] if is_minimized else ordered
    scale = Normalize(spread[0], spread[-1], clip=True)
    shades = colormaps["viridis"]([_LIGHTEST * number / 255 for number in range(256)])
    colours = ListedColormap(shades if is_minimized else shades[::-1])
    bar = figure.colorbar(
        ScalarMappable(scale, colours),
        ax=axes,
        label=f"best {metric}",
        extend="max" if spread[-1] < ordered[-1] else "neither",
        shrink=0.85,
    )
    bar.ax.tick_params(labelsize=8)
    return lambda value: colours(scale(value))


def _by_parameter(
    trials: Sequence[PlottedTrial],
    best_of: Mapping[str, float],
    best: PlottedTrial,
    metric: str,
    log_keys: Collection[str],
) -> Any:
    keys = list(trials[0].values)
    columns = 2 if len(keys) == 4 else min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = new_figure(3.1 * rows + 0.7, max(5.2, 3.7 * columns + 0.6))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for number, key in enumerate(keys):
        axes = grid[number // columns][number % columns]
        axis = _axis(key, [trial.values[key] for trial in trials], is_log=key in log_keys)
        for trial in trials:
            value = trial.values[key]
            axes.scatter(
                axis.labels.index(str(value)) if axis.labels else value,
                best_of[trial.name],
                marker=_MARKERS.get(trial.status, "x"),
                color=_BEST if trial is best else "#33638d",
                s=42,
                zorder=3,
            )
        if axis.labels:
            axes.set_xticks(range(len(axis.labels)), [_wrap_label(label) for label in axis.labels])
            axes.tick_params(axis="x", labelsize=7)
            axes.set_xlim(-0.6, len(axis.labels) - 0.4)
        elif axis.is_log:
            axes.set_xscale("log")
        axes.set_xlabel(_short(key))
        axes.grid(alpha=0.3)
        if number % columns == 0:
            axes.set_ylabel(f"best {metric}")
    for spare in range(len(keys), rows * columns):
        grid[spare // columns][spare % columns].set_visible(False)
    _legend_of_markers(figure, {trial.status for trial in trials}, best.status)
    figure.suptitle(f"Best {metric} of {_count(trials)} against each parameter", fontsize=11)
    return figure


def _legend_of_markers(figure: Any, statuses: set[str], best_status: str) -> None:
    from matplotlib.lines import Line2D

    names = {"finished": "ran to its end", "stopped": "stopped early"}
    present = [status for status in _MARKERS if status in statuses]
    handles = [
        Line2D([], [], marker=_MARKERS[status], linestyle="", color="#33638d", label=names[status])
        for status in present
    ]
    marker = _MARKERS.get(best_status, "x")
    handles.append(Line2D([], [], marker=marker, linestyle="", color=_BEST, label="the best"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)


def _curves(trials: Sequence[PlottedTrial], best: PlottedTrial, metric: str) -> Any:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.6, 7.6)
    axes = figure.subplots()
    colours = [colormaps["tab20"](number) for number in range(20) if number not in _RED_COLOURS]
    for number, trial in enumerate(trials):
        epochs, values = zip(*trial.curve, strict=True)
        is_best = trial is best
        ended = "" if trial.status == "finished" else f", {trial.status}"
        axes.plot(
            epochs,
            values,
            marker=_MARKERS.get(trial.status, "x"),
            markersize=7 if is_best else 5,
            linewidth=2.6 if is_best else 1.3,
            color=_BEST if is_best else colours[number % len(colours)],
            label=f"{trial.name}{' (best)' if is_best else ended}",
            zorder=3 if is_best else 2,
        )
    every = sorted(value for trial in trials for _, value in trial.curve)
    if every[0] > 0 and every[-1] / every[0] >= _LOG_FROM:
        axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    has_legend = len(trials) <= _MAX_LEGEND
    if has_legend:
        columns = 1 if len(trials) <= 14 else 2
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, ncols=columns)
    red = "" if has_legend else f"\nred: the best ({best.name})"
    title = f"Learning curves: {metric} after each epoch, {_count(trials)}{red}"
    axes.set_title(title, fontsize=11)
    return figure


def _count(trials: Sequence[PlottedTrial]) -> str:
    return f"{len(trials)} trial{'s' if len(trials) != 1 else ''}"


def _short(key: str) -> str:
    """Return a key without its section; the last part is usually unique in a search."""
    return key.rpartition(".")[2]


def _wrap_label(label: str) -> str:
    return textwrap.shorten(label, 60, placeholder=" …").replace(", ", ",\n", 6)


def _number(value: float) -> str:
    return f"{value:.3g}"
