"""An event loop in a thread, for callers that wait in the main thread and may be interrupted."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Generator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_CLOSING_S = 5.0


class LoopThread:
    """Runs coroutines in a separate thread; Ctrl-C interrupts whoever waits for them."""

    def __init__(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="talking", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine returns; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def merge(
        self, streams: Sequence[AsyncIterator[T]]
    ) -> Generator[tuple[int, T | Exception | None]]:
        """Yield the items of several streams as they come, each with the number of its stream.

        A stream ends with None, or with the exception that it raised. Closing the iterator cancels
        the streams that are not over.
        """
        arrived: queue.SimpleQueue[tuple[int, T | Exception | None]] = queue.SimpleQueue()

        async def pump(number: int, stream: AsyncIterator[T]) -> None:
            end = None
            try:
                async for item in stream:
                    arrived.put((number, item))
            except Exception as error:
                end = error
            arrived.put((number, end))

        pumps = [
            asyncio.run_coroutine_threadsafe(pump(number, stream), self._loop)
            for number, stream in enumerate(streams)
        ]
        try:
            running = len(pumps)
            while running:
                number, item = arrived.get()
                running -= item is None or isinstance(item, Exception)
                yield number, item
        finally:
            for each in pumps:
                each.cancel()

    def close(self) -> None:
        """End the thread after what was cancelled has cleaned up."""

        async def cancel_rest() -> None:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            await asyncio.get_running_loop().shutdown_asyncgens()

        asyncio.run_coroutine_threadsafe(cancel_rest(), self._loop).result(_CLOSING_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSING_S)
        self._loop.close()
