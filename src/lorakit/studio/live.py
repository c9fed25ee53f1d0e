"""Doing something again and again while a page is open, whatever the clock does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from nicegui import background_tasks, ui

from lorakit.errors import LorakitError
from lorakit.studio.blocks import notify_problem
from lorakit.studio.frame import error_text


def every(period_s: float, act: Callable[[], Any]) -> None:
    """Call a function, or await it, every `period_s` seconds while this page is connected.

    A `LorakitError` is shown once and the function is called again; another error ends it.

    Args:
        period_s: Seconds between the end of a call and the next.
        act: Function without arguments; what it draws goes to the place of this call.
    """
    client, place = ui.context.client, ui.context.slot.parent

    async def repeat() -> None:
        shown = ""
        while not client.is_deleted:
            await asyncio.sleep(period_s)
            if client.is_deleted or place.is_deleted or not client.has_socket_connection:
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

    background_tasks.create(repeat(), name=f"every {period_s} s on {client.page.path}")
