"""Doing something again and again while somebody sees a page, whatever the clock does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from nicegui import Client, background_tasks, ui
from nicegui.events import GenericEventArguments

from lorakit.errors import LorakitError
from lorakit.studio.blocks import notify_problem
from lorakit.studio.frame import error_text

_is_seen: WeakKeyDictionary[Client, bool] = WeakKeyDictionary()
"""Whether the browser shows a page, or has it in another tab or a minimized window."""

_TELL = """(() => {
    const tell = () => emitEvent("seen", !document.hidden);
    document.addEventListener("visibilitychange", tell);
    if (document.hidden) tell();
})()"""


def every(period_s: float | Callable[[], float], act: Callable[[], Any]) -> None:
    """Call a function, or await it, every `period_s` seconds while the browser shows this page.

    A `LorakitError` is shown once and the function is called again; another error ends it.

    Args:
        period_s: Seconds between the end of a call and the next, or a function that returns them.
        act: Function without arguments; what it draws goes to the place of this call.
    """
    client, place = ui.context.client, ui.context.slot.parent
    _note_visibility(client)

    async def repeat() -> None:
        shown = ""
        while not client.is_deleted:
            await asyncio.sleep(period_s() if callable(period_s) else period_s)
            if client.is_deleted or place.is_deleted:
                continue
            if not client.has_socket_connection or not _is_seen[client]:
                continue
            with place:
                try:
                    result = act()
                    if inspect.isawaitable(result):
                        await result
                    shown = ""
                except LorakitError as error:
                    if str(error) != shown:
                        notify_problem(str(error))
                    shown = str(error)
                except Exception as error:
                    notify_problem(error_text(error))
                    return

    background_tasks.create(repeat(), name=f"repeating on {client.page.path}")


def _note_visibility(client: Client) -> None:
    """Let a page tell when the browser hides and shows it."""
    if client in _is_seen:
        return
    _is_seen[client] = True

    def note(event: GenericEventArguments) -> None:
        _is_seen[client] = bool(event.args)

    ui.on("seen", note)
    client.run_javascript(_TELL)
