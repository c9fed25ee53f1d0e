"""Show answers while they are written: one, two side by side, or one below the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorakit.cli.views.console import console, say
from lorakit.errors import escaped

WIDE = 100
"""Columns of a terminal from which on two answers are shown side by side."""

_SPARE_LINES, _GAP = 3, 3
_KEPT = "\n\t"

Parts = Iterable[tuple[int, str]]
"""The number of an answer, and the next part of its text."""


def show_answers(headings: Sequence[str], parts: Parts) -> None:
    """Show answers while they are written.

    Args:
        headings: A heading for each answer; a single one is not shown.
        parts: Parts of the answers, in any order.
    """
    screen = console()
    if len(headings) == 1:
        _show_one(screen, parts)
    elif screen.is_terminal and screen.width >= WIDE:
        _show_beside(screen, headings, parts)
    else:
        _show_below(screen, headings, parts)


def _show_one(screen: Console, parts: Parts) -> None:
    text = ""
    try:
        for _, part in parts:
            _write(screen, part)
            text += part
    finally:
        if text and not text.endswith("\n"):
            say()


def _show_below(screen: Console, headings: Sequence[str], parts: Parts) -> None:
    """Show the first answer as it comes, and the next ones after it."""
    texts, shown = [""] * len(headings), -1

    def show_next() -> None:
        nonlocal shown
        if shown >= 0 and not texts[shown].endswith("\n"):
            say()
        shown += 1
        say(f"[{headings[shown]}]", style="dim")
        _write(screen, texts[shown])

    show_next()
    try:
        for number, part in parts:
            texts[number] += part
            if number == shown:
                _write(screen, part)
    finally:
        while shown < len(headings) - 1:
            show_next()
        if not texts[shown].endswith("\n"):
            say()


def _show_beside(screen: Console, headings: Sequence[str], parts: Parts) -> None:
    """Show two columns; while they are longer than the screen, their last lines."""
    texts = [""] * len(headings)
    try:
        with Live(console=screen, transient=True, auto_refresh=False) as live:
            for number, part in parts:
                texts[number] += part
                most_lines = screen.height - _SPARE_LINES
                live.update(_table(headings, texts, screen, most_lines), refresh=True)
    finally:
        screen.print(_table(headings, texts, screen, None))


def _table(
    headings: Sequence[str], texts: Sequence[str], screen: Console, most_lines: int | None
) -> RenderableType:
    # A terminal echoes ^C after the last column; on a full line that would move the cursor down.
    width = (screen.width - _GAP) // len(headings) - _GAP
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    for _ in headings:
        grid.add_column(width=width, overflow="fold")
    grid.add_row(*(Text(escaped(heading), style="dim") for heading in headings))
    cells = [Text(escaped(text, keep=_KEPT)) for text in texts]
    if most_lines is not None:
        cells = [
            Text("\n").join(cell.wrap(screen, width, tab_size=4)[-most_lines:]) for cell in cells
        ]
    grid.add_row(*cells)
    return grid


def _write(screen: Console, text: str) -> None:
    """Write a part of a line; what could control the terminal is escaped."""
    screen.print(escaped(text, keep=_KEPT), end="", soft_wrap=True)
