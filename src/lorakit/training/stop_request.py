"""Asking a run from outside, such as from a signal handler, to save a checkpoint and to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Give one to `train`, and call `set` from a signal handler or from another thread.

    The run then saves a checkpoint at the end of its optimizer step and raises `StoppedError`.
    """

    def __init__(self) -> None:
        self._number = 0
        self._is_observed = False

    def set(self, number: int = signal.SIGINT) -> None:
        """Ask the run to stop.

        Args:
            number: Of the signal that is the reason, from 1.
        """
        self._number = self._number or int(number)

    @property
    def number(self) -> int:
        """The signal that was the reason; 0 as long as nobody has asked."""
        return self._number

    @property
    def is_observed(self) -> bool:
        """Whether a run is at a place from which it comes to a checkpoint."""
        return self._is_observed

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Inside the block, a run looks at the request after every step."""
        self._is_observed = True
        try:
            yield
        finally:
            self._is_observed = False
