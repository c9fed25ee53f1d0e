"""Pieces that pages are made of: text in an element, badges, problems, empty lists.

Text is always shown as text, never as HTML, with control characters escaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from lorakit.errors import escaped

_LONG = 24
"""Characters from which on a text may wrap."""


class Text(TextElement):
    """An HTML element that holds one text, such as a heading or a cell."""

    def __init__(self, tag: str, text: str, *, keep: str = ""):
        """Show a text.

        Args:
            tag: Name of the element, such as "h2" or "td".
            text: The text, from anywhere.
            keep: Control characters to keep, such as the newline in a text of several lines.
        """
        super().__init__(tag=tag, text=escaped(text, keep=keep))

    def show(self, text: str) -> None:
        """Show another text, if it differs."""
        self.set_text(escaped(text))


class SteadyPart(ui.element):
    """A part of a page that is drawn again only when what it shows has changed.

    A press of the mouse that begins on one element and ends on another is no click: a link or a
    button that is replaced without need loses clicks.
    """

    def __init__(self, tag: str = "div"):
        super().__init__(tag)
        self._content: object = None

    def show(self, content: object, draw: Callable[[], None]) -> None:
        """Show something, if it differs.

        Args:
            content: All that the drawing depends on; compared with what it was before.
            draw: Draws it.
        """
        if content == self._content:
            return
        self._content = content
        self.clear()
        with self:
            draw()


def badge(word: str, kind: str | None = None) -> Text:
    """Show a short word on a coloured ground, such as the state of a run.

    Args:
        word: The word.
        kind: One of finished, running, queued, failed, interrupted, damaged; None takes the word.
    """
    element = Text("span", word)
    element.classes(f"badge badge-{kind or word}")
    return element


@contextmanager
def card(title: str | None = None, classes: str = "") -> Iterator[ui.element]:
    """Group what belongs together, below a heading."""
    with ui.element("section").classes(f"card {classes}") as section:
        if title is not None:
            Text("h2", title)
        yield section


@contextmanager
def fold(title: str, *, is_open: bool = False) -> Iterator[ui.element]:
    """Group what can be folded; the browser's element for it, which the keyboard opens, too."""
    with ui.element("details").classes("card fold") as section:
        if is_open:
            section.props("open")
        with ui.element("summary"):
            Text("h2", title)
        yield section


def problem(sentence: str) -> None:
    """Show what went wrong, where it went wrong; a screen reader says it at once."""
    with ui.element("div").classes("problem").props("role=alert"):
        ui.icon("error_outline").props("aria-hidden=true")
        Text("span", sentence, keep="\n")


def note(sentence: str) -> None:
    """Show something that the reader should know, quietly."""
    Text("p", sentence).classes("note")


def copyable(text: str, what: str) -> None:
    """Show a text, such as a command line, with a button that copies it.

    Args:
        text: The text; it may have several lines.
        what: What it is, for a screen reader, such as "the command".
    """

    async def copy() -> None:
        if await ui.run_javascript(f"return await ({_COPY})({json.dumps(text)}, {shown.id})"):
            ui.notify("Copied")
        else:
            ui.notify("This browser does not let pages copy. The text is selected: copy it.")

    with ui.element("div").classes("copyable"):
        shown = Text("code", text, keep="\n").props("tabindex=0")
        button = ui.button(icon="content_copy", on_click=copy).props("flat dense round")
        button.props["aria-label"] = f"Copy {escaped(what)}"


_COPY = """async (text, id) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true);
    getSelection().selectAllChildren(getHtmlElement(id));
    return document.execCommand("copy");
}"""
"""Copies a text; without https, pages of other machines have the older way only."""


def empty(sentence: str, link: str | None = None, target: str = "/") -> None:
    """Show why a list is empty, and where to go from here."""
    with ui.element("div").classes("empty"):
        Text("p", sentence)
        if link is not None:
            ui.link(link, target).classes("button")


def notify_problem(sentence: str) -> None:
    """Show what went wrong in something that has no place on the page; it stays until closed."""
    ui.notify(
        escaped(sentence, keep="\n"),
        type="negative",
        timeout=0,
        close_button="Close",
        multi_line=True,
        position="bottom",
    )


def facts(values: Mapping[str, object], classes: str = "facts") -> None:
    """Show names with their values.

    Args:
        values: Values by name; None and an empty text are left out.
        classes: CSS classes of the list.
    """
    with ui.element("dl").classes(classes):
        for name, value in values.items():
            if value not in (None, ""):
                Text("dt", name)
                Text("dd", str(value))


def duration_text(seconds: float) -> str:
    """Return a duration in readable units.

    >>> [duration_text(s) for s in (-5, 3.2, 75, 3725, 200_000)]
    ['0 s', '3 s', '1 min 15 s', '1 h 2 min', '55 h 33 min']
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


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
