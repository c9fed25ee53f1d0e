"""Collects what arrives within a moment into batches, for the thread that owns a model.

That thread is an engine's, or a separate one for a model that no engine runs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from lorakit.errors import EngineStoppedError
from lorakit.ops.native import openmp
from lorakit.serving.refusals import overload_error

T = TypeVar("T")


class Item(Protocol):
    """Something to compute in a batch."""

    @property
    def batch_key(self) -> Hashable:
        """Items of one key can share a batch."""
        ...

    @property
    def tokens(self) -> int:
        """Number of its tokens."""
        ...


@dataclass
class _Waiting:
    item: Any
    result: Future[Any] = field(default_factory=Future)


class MicroBatches:
    """A queue of items; each batch takes the oldest one and those that can share it.

    While a batch runs, the next ones collect, so batches grow with the load and a lone item never
    waits for others.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        between_steps: Callable[[Callable[[], None]], Future[None]],
        *,
        most_rows: int = 32,
        most_tokens: int = 4096,
        most_waiting: int = 1024,
    ):
        """Create an empty queue.

        Args:
            run: Computes the results of items of one key.
            between_steps: Runs a function in the thread that owns the model.
            most_rows: Rows of a batch.
            most_tokens: Tokens of a padded batch; one item alone may have more.
            most_waiting: Items that may wait.
        """
        self._run = run
        self._between_steps = between_steps
        self._most_rows, self._most_tokens = most_rows, most_tokens
        self._most_waiting = most_waiting
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()
        self._is_scheduled = False

    @property
    def waiting(self) -> int:
        """Number of items that wait."""
        return len(self._waiting)

    def submit(self, items: Sequence[Item]) -> list[Future[Any]]:
        """Return the results of items, all taken or none; a cancelled one is not computed.

        Raises:
            RequestError: Too many wait already.
        """
        added = [_Waiting(item) for item in items]
        with self._lock:
            if len(self._waiting) + len(added) > self._most_waiting:
                raise overload_error(
                    f"Too many texts wait for this model: got {len(self._waiting)} and "
                    f"{len(added)} more, expected at most {self._most_waiting}. Wait a moment."
                )
            self._waiting.extend(added)
            is_first, self._is_scheduled = not self._is_scheduled, True
        if is_first:
            self._schedule()
        return [each.result for each in added]

    def _schedule(self) -> None:
        """Ask for a turn in the model's thread; if it has none, tell those who wait."""
        try:
            turn = self._between_steps(self._run_next)
        except RuntimeError:  # the thread has ended
            self._fail_all(_stop_error())
            return
        turn.add_done_callback(self._after)

    def _after(self, turn: Future[None]) -> None:
        error = _stop_error() if turn.cancelled() else turn.exception()
        if error is not None:
            self._fail_all(error)

    def _fail_all(self, error: BaseException) -> None:
        with self._lock:
            left, self._waiting = self._waiting, deque()
            self._is_scheduled = False
        for each in left:
            if each.result.set_running_or_notify_cancel():
                each.result.set_exception(error)

    def _run_next(self) -> None:
        """Run one batch in the model's thread; what still waits is run in another turn."""
        batch = self._take()
        if batch:
            self._answer(batch)
        with self._lock:
            self._is_scheduled = bool(self._waiting)
            goes_on = self._is_scheduled
        if goes_on:
            self._schedule()

    def _take(self) -> list[_Waiting]:
        with self._lock:
            batch: list[_Waiting] = []
            left: list[_Waiting] = []
            longest = 0
            for each in self._waiting:
                padded = max(longest, each.item.tokens) * (len(batch) + 1)
                fits = not batch or (
                    each.item.batch_key == batch[0].item.batch_key
                    and len(batch) < self._most_rows
                    and padded <= self._most_tokens
                )
                if not fits:
                    left.append(each)
                elif each.result.set_running_or_notify_cancel():
                    batch.append(each)
                    longest = max(longest, each.item.tokens)
            self._waiting = deque(left)
            return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            results = self._run([each.item for each in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].result.set_exception(error)
                return
            for each in batch:  # one item must not fail the others
                self._answer([each])
            return
        for each, result in zip(batch, results, strict=True):
            each.result.set_result(result)


def _run_and_wait(function: Callable[[], T]) -> T:
    try:
        return function()
    finally:
        openmp.end_waiting_threads()


def _stop_error() -> EngineStoppedError:
    return EngineStoppedError(
        "The server takes no requests: it is stopping. Send them to another one."
    )


class ModelThread:
    """Runs functions one after the other, as an engine does between its steps."""

    def __init__(self, name: str):
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    def between_steps(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in the thread that owns the model."""
        return self._executor.submit(_run_and_wait, function)

    def stop(self, *, finish_running: bool = True) -> None:
        """End the thread.

        Args:
            finish_running: Whether to run what waits first.
        """
        self._executor.shutdown(wait=True, cancel_futures=not finish_running)
