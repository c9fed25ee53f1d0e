"""A request as a value, and the application's answer to it as a stream of messages.

A process that takes requests sends them as values to processes that have a model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Scope

Message = MutableMapping[str, Any]

_KEPT = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"),
    *("root_path", "headers", "client", "server"),
)
"""What an application reads of a request's scope; the rest belongs to the process that took it."""


@dataclass(frozen=True)
class CarriedRequest:
    """A request whose body has arrived.

    Attributes:
        scope: The scope, as ASGI defines it.
        body: The body.
    """

    scope: Scope
    body: bytes

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> CarriedRequest:
        """Return the request of a scope and a body."""
        return cls({name: scope[name] for name in _KEPT if name in scope}, body)

    def text(self, name: str) -> str:
        """Return a field of its JSON body that is a text; an empty one if there is none."""
        try:
            value = json.loads(self.body or b"{}")[name]
        except (ValueError, RecursionError, LookupError, TypeError):
            return ""  # the application says what is wrong with it
        return value if isinstance(value, str) else ""


async def answer(app: ASGIApp, request: CarriedRequest) -> AsyncGenerator[list[Message]]:
    """Yield the messages that an application sends, those that are ready together.

    The application learns that the client has left when the generator is closed or cancelled.
    """
    # The application's own limits bound what waits here: it never holds more than one answer.
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    is_left = asyncio.Event()
    unread = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await is_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.put_nowait(message)

    running = asyncio.ensure_future(app(dict(request.scope), receive, send))
    running.add_done_callback(lambda _: messages.put_nowait(None))
    is_over = False
    try:
        while not is_over:
            waiting = [await messages.get()]
            while not messages.empty():
                waiting.append(messages.get_nowait())
            is_over = waiting[-1] is None
            if ready := [message for message in waiting if message is not None]:
                yield ready
        await running
    finally:
        is_left.set()
        if not running.done():
            await asyncio.wait({running})
