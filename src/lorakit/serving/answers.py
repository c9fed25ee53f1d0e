"""Answers that an engine is writing, as an event loop sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

from lorakit.serving.requests import Event, Failed, Finished, GenerationRequest, NewText

if TYPE_CHECKING:
    from lorakit.serving.engine import Engine, RequestHandle
    from lorakit.serving.store import Lease


class Answers:
    """The answers to one request: their events as they come, and the way to give them up."""

    def __init__(self, engine: Engine, lease: Lease):
        """Begin without any.

        Args:
            engine: The engine.
            lease: The adapter, which is held until the last answer is over.
        """
        self._engine = engine
        self._lease = lease
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._handles: list[RequestHandle] = []
        self._open = 0

    def ask(self, request: GenerationRequest) -> None:
        """Ask for one more answer.

        Raises:
            LorakitError: The engine's queue is full, or the request can never fit.
        """
        index = len(self._handles)
        self._lease.hold()
        try:
            handle = self._engine.submit(request, lambda event: self._deliver(index, event))
        except BaseException:
            self._lease.release()
            raise
        self._handles.append(handle)
        self._open += 1

    def _deliver(self, index: int, event: Event) -> None:
        """Take an event in the engine's thread."""
        if isinstance(event, Finished | Failed):
            self._lease.release()  # not before: until now the engine may have run the adapter
        with suppress(RuntimeError):  # the loop has ended, so nobody waits for the event
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def events(self) -> AsyncIterator[tuple[int, NewText | Finished]]:
        """Yield the number of an answer and its next event, until all are finished.

        Raises:
            Exception: What the engine failed with.
        """
        while self._open:
            index, event = await self._events.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                self._open -= 1
            yield index, event

    def cancel(self) -> None:
        """Give up the answers that are not over."""
        for handle in self._handles:
            if not handle.is_over:
                self._engine.cancel(handle)
