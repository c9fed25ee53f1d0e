"""Save a plot atomically, with all names as plain text."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.errors import escaped
from lorakit.files.atomic import replacing_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_FEW_ACROSS, _FEW_UP = 30, 1000
"""Up to this ratio of its limits, an axis also has ticks at 2 and 5 times a power of ten."""


def save_png(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write a figure as a PNG.

    Plots contain the names of files, classes and modules. matplotlib would typeset text between two
    dollar signs as a formula, and fail if it is not one. So formulas are disabled, and powers of
    ten at a logarithmic axis, which are formulas, become plain numbers.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for axes in figure.axes:
        _write_plain_powers(axes.xaxis, *axes.get_xlim(), _FEW_ACROSS)
        _write_plain_powers(axes.yaxis, *axes.get_ylim(), _FEW_UP)
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for found in figure.findobj(Text):
            text: Text = found
            text.set_parse_math(False)
            text.set_text(escaped(text.get_text(), keep="\n"))
        with replacing_file(path) as partial:
            # savefig would draw everything once more, to find the layout beforehand.
            figure.set_dpi(dpi)
            FigureCanvasAgg(figure).print_png(partial)


def _write_plain_powers(axis: Any, low: float, high: float, few: float) -> None:
    """Replace the formulas at an axis; an axis with fixed ticks has none."""
    from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, NullFormatter

    if not isinstance(axis.get_major_formatter(), LogFormatterMathtext):
        return
    low, high = sorted((low, high))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high <= few * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_power(value)))
    axis.set_minor_formatter(NullFormatter())


def plain_power(value: float) -> str:
    """Return a number as text for a logarithmic axis.

    >>> [plain_power(value) for value in (0.0001, 0.00002, 5.0, 10_000.0, 1e6)]
    ['0.0001', '2e-5', '5', '10000', '1e6']
    """
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")
