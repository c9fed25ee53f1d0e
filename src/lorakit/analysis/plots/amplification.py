"""Plot the amplification factors and their controls."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from lorakit.analysis.adapter_analysis import AdapterAnalysis
from lorakit.analysis.amplification import Amplification
from lorakit.analysis.plots.figures import new_figure
from lorakit.analysis.plots.png import save_png

_BARS = (
    ("along_base", "directions of W0 itself", "#9aa5b1"),
    ("along_update", "directions of ΔW", "#1f77b4"),
    ("along_random", "random directions", "#d9c7a0"),
)


def plot_amplification(analysis: AdapterAnalysis, path: Path) -> None:
    """Plot the factor of every layer, and the norm of W0 along three sets of directions.

    Args:
        analysis: Analysis with amplifications.
        path: File to write.
    """
    by_kind = analysis.by_kind(analysis.amplifications)
    figure = new_figure(6.4)
    top, bottom = figure.subplots(2, 1, sharex=True)
    places = range(len(by_kind))
    factors = [[found.factor for found in group] for group in by_kind.values()]
    top.bar(places, [median(group) for group in factors], color="#1f77b4", alpha=0.75, width=0.6)
    for place, group in zip(places, factors, strict=True):
        top.plot([place] * len(group), group, "o", color="black", markersize=3.5, alpha=0.6)
    top.axhline(1, color="black", linewidth=1, linestyle="--")
    top.set_ylabel("‖ΔW‖ / ‖Uᵀ W0 V‖ (ratio)")
    top.set_title(f"Amplification factor in {analysis.name}: bar = median, dots = layers")
    _draw_norms(bottom, list(by_kind.values()))
    bottom.set_title("What W0 has along r directions: median over the layers")
    bottom.set_xlim(-0.75, len(by_kind) - 0.25)
    slanted = sum(map(len, by_kind)) > 70
    bottom.set_xticks(
        places, by_kind, rotation=35 if slanted else 0, ha="right" if slanted else "center"
    )
    for axes in (top, bottom):
        axes.grid(axis="y", alpha=0.3, which="both")
        axes.set_axisbelow(True)
    save_png(figure, path)


def _draw_norms(axes: Any, kinds: list[list[Amplification]]) -> None:
    for number, (attribute, label, colour) in enumerate(_BARS):
        heights = [median(getattr(found, attribute) for found in group) for group in kinds]
        places = [place + 0.27 * (number - 1) for place in range(len(kinds))]
        axes.bar(places, heights, width=0.25, color=colour, label=label)
    norms = [median(found.update_norm for found in group) for group in kinds]
    axes.plot(range(len(kinds)), norms, "D", color="#b40426", label="‖ΔW‖ itself")
    axes.set_ylabel("‖Uᵀ W0 V‖ (Frobenius)")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.5, high * 3)
    axes.legend(ncols=4, loc="upper center", fontsize=8.5, columnspacing=1.2, handletextpad=0.5)
