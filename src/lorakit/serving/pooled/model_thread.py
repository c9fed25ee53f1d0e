"""The thread that owns a model which no engine runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class ModelThread:
    """Runs functions one after the other, as an engine does between its steps."""

    def __init__(self, name: str):
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    def between_steps(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in the thread that owns the model."""
        return self._executor.submit(function)

    def stop(self, *, finish_running: bool = True) -> None:
        """End the thread.

        Args:
            finish_running: Whether to run what waits first.
        """
        self._executor.shutdown(wait=True, cancel_futures=not finish_running)
