"""Doing something again and again while somebody sees a page, whatever the clock does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from nicegui import Client, background_tasks, ui
from nicegui.events import GenericEventArguments

from lorakit.errors import LorakitError
from lorakit.studio.blocks import notify_problem
from lorakit.studio.frame import error_text

_RESTS_AFTER_S = 30.0
"""How long after its last use a page rests."""

_REST_S = 10.0
"""Between two looks of a page that rests: each takes time from the runs of this machine."""

_TELL = """((restsAfterMs) => {
    let told = "used", usedMs, timer;
    const tell = () => {
        const leftMs = usedMs + restsAfterMs - performance.now();
        const now = document.hidden ? "hidden" : leftMs > 0 ? "used" : "resting";
        if (now !== told) emitEvent("attention", (told = now));
        clearTimeout(timer);
        if (now === "used") timer = setTimeout(tell, leftMs);
    };
    const use = () => {
        usedMs = performance.now();
        if (told !== "used" || document.hidden) tell();
    };
    const signs = ["pointermove", "pointerdown", "wheel", "keydown", "focus", "visibilitychange"];
    for (const sign of signs) addEventListener(sign, use, { capture: true, passive: true });
    use();
    tell();
})"""
"""Tells whether a page is hidden, used or resting, when that changes."""


def every(
    period_s: float,
    act: Callable[[], Any],
    *,
    is_awaited: Callable[[], bool] = lambda: False,
) -> None:
    """Call a function, or await it, every `period_s` seconds while somebody uses this page.

    A page that nobody has touched for half a minute rests: the function is called every few seconds
    then, and at once with the next touch. A page that the browser hides calls it no more.

    A `LorakitError` is shown once and the function is called again; another error ends it.

    Args:
        period_s: Seconds between the end of a call and the next.
        act: Function without arguments; what it draws goes to the place of this call.
        is_awaited: Whether somebody waits for what comes, so that the page does not rest.
    """
    client, place = ui.context.client, ui.context.slot.parent
    attention = _attention.get(client) or _Attention(client)

    async def repeat() -> None:
        shown = ""
        while not client.is_deleted:
            was_awaited = is_awaited()  # if so, its end is shown too
            await asyncio.sleep(period_s)
            if not was_awaited:
                await attention.rest(_REST_S - period_s)
            if client.is_deleted or place.is_deleted:
                continue
            if not client.has_socket_connection or attention.is_hidden:
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


class _Attention:
    """How a page is watched, as its browser tells: hidden, resting or used.

    Attributes:
        is_hidden: Whether the page is in another tab or a minimized window.
    """

    def __init__(self, client: Client):
        """Let a page tell; somebody has just opened it."""
        self.is_hidden = False
        self._is_used = asyncio.Event()
        self._is_used.set()
        _attention[client] = self
        ui.on("attention", self._note)
        client.run_javascript(f"{_TELL}({1000 * _RESTS_AFTER_S})")

    async def rest(self, seconds: float) -> None:
        """Wait until somebody uses the page, which may be now, but no longer than some seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_used.wait()

    def _note(self, event: GenericEventArguments) -> None:
        self.is_hidden = event.args == "hidden"
        if event.args == "used":
            self._is_used.set()
        else:
            self._is_used.clear()


_attention: WeakKeyDictionary[Client, _Attention] = WeakKeyDictionary()
