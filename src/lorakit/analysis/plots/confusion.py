"""confusion.png: validation examples by expected and predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit.analysis.plots.figures import new_figure
from lorakit.analysis.plots.png import save_png

_AROUND_INCHES, _CELL_INCHES = 2.2, 0.45
_LEAST_INCHES, _MOST_INCHES = 4.5, 8.5
_NUMBERED_CLASSES = 20
"""Largest number of classes with a number in each cell."""
_LONGEST_NAME = 24


def plot_confusion(confusion: Any, labels: Sequence[str], path: Path, name: str) -> None:
    """Plot how many examples of each class get each prediction.

    A cell has the colour of its share of the row, so that rare classes are visible, and its number
    of examples.

    Args:
        confusion: Examples by expected and predicted class, array (classes, classes).
        labels: Class names by id.
        path: File to write.
        name: Name of the run.
    """
    count = len(labels)
    height = min(max(_AROUND_INCHES + _CELL_INCHES * count, _LEAST_INCHES), _MOST_INCHES)
    figure = new_figure(height)
    axes = figure.subplots()
    totals = confusion.sum(1, keepdims=True)
    shares = confusion / totals.clip(1)
    look = {"cmap": "Blues", "vmin": 0, "vmax": 1, "interpolation": "nearest", "aspect": "auto"}
    image = axes.imshow(shares, **look)
    size = 9 if count <= 12 else 7
    if count <= _NUMBERED_CLASSES:
        for row, column in ((r, c) for r in range(count) for c in range(count)):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{confusion[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    names = [_short(label) for label in labels]
    axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.tick_params(labelsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("expected class")
    axes.set_title(f"Validation examples of {name} by class")
    figure.colorbar(image, ax=axes, label="share of the expected class")
    save_png(figure, path)


def _short(label: str) -> str:
    """Return a class name that fits beside the cells."""
    return label if len(label) <= _LONGEST_NAME else label[: _LONGEST_NAME - 1] + "…"
