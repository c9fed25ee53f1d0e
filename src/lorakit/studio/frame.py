"""What every page has around it: header, navigation, dark mode, and a place for errors."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, wraps
from importlib.resources import files
from typing import Any
from weakref import WeakKeyDictionary

from nicegui import ui
from nicegui.client import Client

from lorakit.errors import LorakitError, escaped, first_line
from lorakit.studio.blocks import Text, notify_problem, problem
from lorakit.studio.context import current

_log = logging.getLogger(__name__)

NAVIGATION = (
    ("Runs", "/"),
    ("New run", "/new"),
    ("Compare", "/compare"),
    ("Playground", "/playground"),
    ("Adapters", "/adapters"),
)
"""Name and address of what the header links to; an address that no page has is left out."""

DARK_COOKIE = "lorakit-dark"
_BUILD_S = 10.0
"""A page that takes longer to build shows an error; slow work belongs into a `LongAction`."""


@dataclass(frozen=True)
class Page:
    """A page of the studio.

    Attributes:
        path: Its address, with FastAPI's parameters, such as "/run/{path:path}".
        title: Its heading, and the name of its browser tab.
        build: Draws its contents; takes the parameters of the path and the query by name.
    """

    path: str
    title: str
    build: Callable[..., Any]


def page(path: str, title: str) -> Callable[[Callable[..., Any]], Page]:
    """Make a function that draws contents a page of the studio; list it in `pages.PAGES`.

    A `LorakitError` that it raises is shown as its sentence, any other error as a clear message.

    Args:
        path: Address, with FastAPI's parameters.
        title: Heading, and name of the browser tab.
    """
    return partial(Page, path, title)


def register(pages: Iterable[Page]) -> None:
    """Give NiceGUI the pages, each in its frame."""
    for one in pages:
        _addresses.add(one.path)
        ui.page(one.path, response_timeout=_BUILD_S)(_frame_page(one))


def set_title(text: str) -> None:
    """Show another heading on this page, such as the name of the run it is about."""
    heading = _headings[ui.context.client]
    heading.show(text)
    ui.page_title(f"{escaped(text)} · lorakit studio")


def show_error(error: Exception) -> None:
    """Show an error at this place: the sentence that the command line prints."""
    problem(error_text(error))


def error_text(error: Exception) -> str:
    """Return what to show of an error; one that lorakit does not raise is also logged."""
    if isinstance(error, LorakitError):
        return str(error)
    _log.error("A page of the studio failed.", exc_info=error)
    return (
        f"Something unexpected went wrong: {type(error).__name__}: {first_line(error)}. "
        "Reload the page; the terminal of the studio has the details."
    )


_addresses: set[str] = set()
"""Addresses of the pages that are registered."""

_headings: WeakKeyDictionary[Client, Text] = WeakKeyDictionary()


def draw_missing_page() -> None:
    """Draw what is shown at an address that no page has."""

    def build() -> None:
        path = ui.context.client.request.url.path
        problem(f"No page at {path}: got an address that the studio does not have.")
        ui.link("Go to the runs", "/")

    ui.context.client.status_code = 404
    _frame_page(Page("", "Not found", build))()


def _frame_page(one: Page) -> Callable[..., Any]:
    """Return a page's function with the same parameters that draws the frame around it."""

    def begin() -> ui.element:
        ui.on_exception(lambda error: notify_problem(error_text(error)))
        _draw_header(one)
        main = ui.element("div").props("id=main tabindex=-1")
        with main:
            _headings[ui.context.client] = Text("h1", one.title)
        ui.page_title(f"{one.title} · lorakit studio")
        return main

    @wraps(one.build)
    def draw(**parameters: Any) -> None:
        with begin():
            try:
                one.build(**parameters)
            except Exception as error:
                show_error(error)

    @wraps(one.build)
    async def draw_async(**parameters: Any) -> None:
        with begin():
            try:
                await one.build(**parameters)
            except Exception as error:
                show_error(error)

    framed = draw_async if inspect.iscoroutinefunction(one.build) else draw
    # FastAPI reads the annotations, which are texts, in the module of the page.
    framed.__signature__ = inspect.signature(one.build, eval_str=True)  # type: ignore[attr-defined]  # read by inspect.signature
    framed.__annotations__ = {}
    return framed


def _draw_header(one: Page) -> None:
    client = ui.context.client
    chosen = {"1": True, "0": False}.get(client.request.cookies.get(DARK_COOKIE, ""))
    _draw_head(chosen)
    with client.layout:  # beside the page's <main>, not in it
        ui.link("Skip to the content", "#main").classes("skip").move(target_index=0)
        header = ui.element("header").classes("top")
        header.move(target_index=1)
    with header:
        ui.link("lorakit studio", "/").classes("brand")
        with ui.element("nav").props('aria-label="Pages"'):
            for name, target in NAVIGATION:
                if target not in _addresses:
                    continue
                link = ui.link(name, target)
                if target == one.path:
                    link.props("aria-current=page")
        root = current().root
        Text("span", root.name or str(root)).classes("root").props["title"] = escaped(str(root))
        _draw_dark_switch(chosen)


def _draw_dark_switch(chosen: bool | None) -> None:
    dark = ui.dark_mode(chosen)
    button = ui.button(icon="contrast", color=None).props(
        'flat round dense aria-label="Dark or light"'
    )
    button.classes("dark-switch")

    async def switch() -> None:
        is_dark = await ui.run_javascript("document.body.classList.contains('body--dark')")
        dark.value = not is_dark
        year_s = 31_536_000
        ui.run_javascript(
            f"document.cookie='{DARK_COOKIE}={int(not is_dark)};path=/;max-age={year_s};"
            "samesite=lax'"
        )

    button.on_click(switch)


def _draw_head(chosen: bool | None) -> None:
    style = files("lorakit.studio").joinpath("studio.css").read_text(encoding="utf-8")
    ui.add_head_html(f"<style>{style}</style>")
    if chosen is not None:  # the ground has its colour before the scripts have arrived
        ui.add_head_html(
            f"<style>:root {{ color-scheme: {'dark' if chosen else 'light'} }}</style>"
        )
    ui.colors(primary="#3346b8", negative="#a3202c", positive="#1d6b43", dark_page="#14171d")
