"""Size, colours and legends that the plots of a report share.

A plot is about 1,040 pixels wide, so that its text is still readable at 800.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_INCHES = 8.0

_COLOURS = (
    *("#1f77b4", "#d95f02", "#1b9e77", "#7a3db8", "#e7298a", "#66a61e", "#8c564b", "#17a2b8"),
    *("#b8860b", "#555555", "#3b4cc0", "#b40426"),
)
_STYLES = ("-", "--", ":", "-.")


def new_figure(height_inches: float, width_inches: float = WIDTH_INCHES) -> Figure:
    """Return an empty figure, whose parts leave room for each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def styles(kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a line style for each kind; the style changes when colours run out."""
    return {
        kind: {
            "color": _COLOURS[number % len(_COLOURS)],
            "linestyle": _STYLES[number // len(_COLOURS) % len(_STYLES)],
        }
        for number, kind in enumerate(kinds)
    }


def legend_beside(axes: Any, title: str, count: int) -> None:
    """Put a legend to the right of the axes, in small type if it has many entries."""
    size = 9 if count <= 12 else 6.5
    axes.legend(
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        fontsize=size,
        frameon=False,
    )
