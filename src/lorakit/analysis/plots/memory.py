"""Plot the memory of a training step by purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorakit.analysis.plots.figures import new_figure, styles
from lorakit.analysis.plots.png import save_png

_UNITS = (("GB", 1e9), ("MB", 1e6))
_BAR_INCHES = 0.55
_AROUND_INCHES = 2.1
_LABEL_ROW = -0.68
_NEAR = 2.5
"""Memory above this multiple of the peak is written, not drawn, so that bars stay visible."""


def plot_memory(
    bars: Mapping[str, Mapping[str, int]],
    order: Sequence[str],
    path: Path,
    title: str,
    memory_bytes: int | None = None,
) -> None:
    """Plot the peak of each training method as a stacked bar, as a PNG.

    Args:
        bars: Bytes by purpose, by name of the bar; the first is drawn on top.
        order: Order of the purposes in a bar.
        path: File to write.
        title: Title of the plot.
        memory_bytes: Memory of the device, drawn as a line; None if unknown.
    """
    from matplotlib.patheffects import withStroke

    tallest = max((sum(parts.values()) for parts in bars.values()), default=0)
    unit, unit_bytes = next((u for u in _UNITS if tallest >= u[1]), _UNITS[-1])
    present = {purpose for parts in bars.values() for purpose in parts}
    purposes = [purpose for purpose in order if purpose in present]
    colours = styles(purposes)
    figure = new_figure(_AROUND_INCHES + _BAR_INCHES * len(bars))
    axes = figure.subplots()
    rim = [withStroke(linewidth=3, foreground="white")]
    names = list(bars)
    for row, name in enumerate(names):
        left = 0.0
        for purpose in purposes:
            width = bars[name].get(purpose, 0) / unit_bytes
            label = purpose if row == 0 else None
            axes.barh(row, width, left=left, color=colours[purpose]["color"], label=label)
            left += width
        peak = f" {left:.4g} {unit}"
        axes.text(left, row, peak, va="center", fontsize=9, path_effects=rim, zorder=3)
    is_near = memory_bytes is not None and memory_bytes <= _NEAR * max(tallest, 1)
    if memory_bytes is not None and is_near:
        there = memory_bytes / unit_bytes
        axes.axvline(there, color="black", linestyle="--", linewidth=1)
        axes.text(there, _LABEL_ROW, f" {there:.4g} {unit} available", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, 2 * _LABEL_ROW + 0.4 if is_near else -0.5)
    widest = max(tallest, memory_bytes or 0 if is_near else 0) / unit_bytes
    axes.set_xlim(0, widest * 1.15 or 1)
    far = "" if memory_bytes is None or is_near else f"; {memory_bytes / 1e9:.3g} GB available"
    axes.set_xlabel(f"memory at the peak of a step ({unit}{far})")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=3, fontsize=8, frameon=False)
    save_png(figure, path)
