"""Handlers of buttons that show what went wrong, where NiceGUI would only log it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

from nicegui.slot import Slot

from lorakit.errors import LorakitError
from lorakit.studio.blocks import notify_problem


def telling(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that shows a `LorakitError` as its sentence; other errors pass.

    Args:
        handler: A function or a coroutine function.
    """

    @wraps(handler)
    def tell(*args: Any, **options: Any) -> Any:
        try:
            return handler(*args, **options)
        except LorakitError as error:
            notify_problem(str(error))

    @wraps(handler)
    async def tell_async(*args: Any, **options: Any) -> Any:
        # The page stays when the handler draws the part again that it belongs to.
        page = next((slot.parent.client for slot in Slot.get_stack()[:1]), nullcontext())
        try:
            return await handler(*args, **options)
        except LorakitError as error:
            with page:
                notify_problem(str(error))

    return tell_async if inspect.iscoroutinefunction(handler) else tell
