"""A picture of what the memory of a training step is made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lorakit.analysis.pictures import new_figure, save_png, styles

_GB = 1e9
_BAR_INCHES = 0.55
_AROUND_INCHES = 1.9


def plot_memory(
    bars: Mapping[str, Mapping[str, int]], path: Path, title: str, memory_bytes: int | None = None
) -> None:
    """Draw the peak of each way to train as a stacked bar, as a PNG.

    Args:
        bars: Bytes by what they are for, by the name of the bar; the first is drawn on top.
        path: The file to write.
        title: What is planned.
        memory_bytes: What there is, drawn as a line; None where it is not known.
    """
    purposes = list(dict.fromkeys(purpose for parts in bars.values() for purpose in parts))
    colours = styles(purposes)
    figure = new_figure(_AROUND_INCHES + _BAR_INCHES * len(bars))
    axes = figure.subplots()
    names = list(bars)
    for row, name in enumerate(names):
        left = 0.0
        for purpose in purposes:
            width = bars[name].get(purpose, 0) / _GB
            label = purpose if row == 0 else None
            axes.barh(row, width, left=left, color=colours[purpose]["color"], label=label)
            left += width
        axes.text(left, row, f" {left:.3g} GB", va="center", fontsize=9)
    if memory_bytes is not None:
        axes.axvline(memory_bytes / _GB, color="black", linestyle="--", linewidth=1)
        axes.text(
            memory_bytes / _GB,
            -0.62,
            f"{memory_bytes / _GB:.3g} GB there",
            ha="center",
            va="bottom",
            fontsize=8,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.75)
    widest = max([*(sum(parts.values()) for parts in bars.values()), memory_bytes or 0]) / _GB
    axes.set_xlim(0, widest * 1.15 or 1)
    axes.set_xlabel("memory at the peak of a step (GB)")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=3, fontsize=8, frameon=False)
    save_png(figure, path)
