"""Saving a picture: whole or not at all, with every name in it as plain text."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.atomic import replacing_file
from lorakit.errors import escaped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write a figure as a PNG.

    The names of files, classes and modules stand in pictures: matplotlib would set what is between
    two dollar signs as a formula, and fail where it is none.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for found in figure.findobj(Text):
            text: Text = found  # type: ignore[assignment]
            text.set_parse_math(False)
            text.set_text(escaped(text.get_text(), keep="\n"))
        with replacing_file(path) as partial:
            figure.savefig(partial, format="png", dpi=dpi)
