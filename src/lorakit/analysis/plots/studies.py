"""Plot a study: the metric by rank and by parameters, for each module set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.analysis.plots.figures import new_figure
from lorakit.analysis.plots.png import save_png

_MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class PlottedCell:
    """One rank on one set of modules."""

    label: str
    """Name of the set."""
    rank: int
    parameters: int
    """Parameters of the factors."""
    values: tuple[float, ...]
    """Metric of each seed."""
    mean: float
    deviation: float
    """Standard deviation over the seeds; 0 for one seed."""


def plot_study(
    cells: Sequence[PlottedCell],
    recommended: PlottedCell | None,
    metric: str,
    title: str,
    path: Path,
    ring: str = "smallest sufficient",
) -> None:
    """Plot a study as a PNG: means with standard deviations, and every run as a dot.

    Args:
        cells: All trained cells.
        recommended: Cell marked by a ring; None marks none.
        metric: Label of the vertical axis.
        title: Title of the plot.
        path: File to write.
        ring: What the ring marks.
    """
    from matplotlib import colormaps

    figure = new_figure(4.9, 10.5)
    by_rank, by_size = figure.subplots(1, 2, sharey=True)
    labels = list(dict.fromkeys(cell.label for cell in cells))
    for number, label in enumerate(labels):
        group = [cell for cell in cells if cell.label == label]
        look = {
            "color": colormaps["tab10"](number % 10),
            "marker": _MARKERS[number % len(_MARKERS)],
            "label": label,
        }
        _draw(by_rank, [cell.rank for cell in group], group, look)
        _draw(by_size, [cell.parameters for cell in group], group, look)
    if recommended is not None:
        places = ((by_rank, recommended.rank), (by_size, recommended.parameters))
        for axes, place in places:
            axes.scatter(
                place,
                recommended.mean,
                s=260,
                facecolors="none",
                edgecolors="#c1272d",
                linewidths=2.2,
                zorder=5,
                label=ring,
            )
    ranks = sorted({cell.rank for cell in cells})
    by_rank.set_xscale("log", base=2)
    by_rank.set_xticks(ranks, [str(rank) for rank in ranks])
    by_rank.minorticks_off()
    by_rank.set_xlabel("rank r")
    by_size.set_xscale("log")
    by_size.set_xlabel("parameters of the factors")
    by_rank.set_ylabel(metric)
    for axes in (by_rank, by_size):
        axes.grid(alpha=0.3)
    handles, names = by_rank.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=9)
    figure.suptitle(title, fontsize=11)
    save_png(figure, path)


def _draw(axes: Any, places: list[int], cells: Sequence[PlottedCell], look: dict[str, Any]) -> None:
    axes.errorbar(
        places,
        [cell.mean for cell in cells],
        yerr=[cell.deviation for cell in cells],
        capsize=3,
        linewidth=1.5,
        markersize=6,
        **look,
    )
    for place, cell in zip(places, cells, strict=True):
        axes.scatter([place] * len(cell.values), cell.values, s=10, alpha=0.45, color=look["color"])
