"""Shorter turns of Python's threads beside one that runs a model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TURN_S = 0.0005
"""Python's default is 5 ms, a sixth of a step of a small model: so long its thread, and the
processors with it, wait between two operations for another that parses a request or an adapter."""


class _Interval:
    """Python's switch interval, which belongs to the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_blocks = 0
        self._before_s = 0.0

    @contextmanager
    def short_turns(self) -> Iterator[None]:
        """Let threads take turns at Python ten times as often inside the block.

        Blocks of several threads may overlap; the last one to end restores the interval.
        """
        with self._lock:
            if not self._open_blocks:
                self._before_s = sys.getswitchinterval()
                sys.setswitchinterval(min(_TURN_S, self._before_s))
            self._open_blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._open_blocks -= 1
                if not self._open_blocks:
                    sys.setswitchinterval(self._before_s)


short_turns = _Interval().short_turns
