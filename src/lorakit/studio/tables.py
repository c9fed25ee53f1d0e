"""Tables of texts that scroll in their own box."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from lorakit.studio.blocks import Text

_LONG = 24
"""Characters from which on a text may wrap."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> None:
    """Show a table of texts.

    Args:
        header: Names of the columns.
        rows: Cells by row.
        numbers_from: First column that is aligned to the right.
    """
    with ui.element("div").classes("scroll"), ui.element("table").classes("plain"):
        with ui.element("thead"), ui.element("tr"):
            for place, name in enumerate(header):
                cell = Text("th", name).props("scope=col")
                if place >= numbers_from:
                    cell.classes("number")
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for place, text in enumerate(row):
                        cell = Text("td", text, keep="\n")
                        if place >= numbers_from:
                            cell.classes("number")
                        elif len(text) > _LONG:
                            cell.classes("long")
