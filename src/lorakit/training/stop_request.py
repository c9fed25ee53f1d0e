"""Request from outside, such as a signal handler, that a run saves a checkpoint and stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """A stop request: pass it to `train`, and call `set` from a signal handler or a thread.

    The run then saves a checkpoint at the end of its optimizer step and raises `StoppedError`.
    """

    def __init__(self) -> None:
        self._number = 0
        self._observers = 0

    def set(self, number: int = signal.SIGINT) -> None:
        """Request the run to stop.

        Args:
            number: Number of the signal, from 1.
        """
        self._number = self._number or int(number)

    @property
    def number(self) -> int:
        """Number of the signal, or 0 without a request."""
        return self._number

    @property
    def is_observed(self) -> bool:
        """Whether a run checks this request, and so will reach a checkpoint."""
        return self._observers > 0

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Declare that a run checks this request after every step inside the block."""
        self._observers += 1
        try:
            yield
        finally:
            self._observers -= 1
