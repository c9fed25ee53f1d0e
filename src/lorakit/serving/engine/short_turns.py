"""Shorter turns of Python's threads beside one that runs a model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TURN_S = 0.0005
"""Python's default is 5 ms, a sixth of a step of a small model: so long its thread, and the
processors with it, wait between two operations for another that parses a request or an adapter."""

_lock = threading.Lock()
_before_s: list[float] = []
"""The interval to restore at the end of each block that is open, the outermost first."""


@contextmanager
def short_turns() -> Iterator[None]:
    """Let threads take turns at Python ten times as often inside the block.

    The interval is that of the process; blocks of several threads may overlap, and the last one to
    end restores it.
    """
    with _lock:
        _before_s.append(sys.getswitchinterval())
        sys.setswitchinterval(min(_TURN_S, _before_s[0]))
    try:
        yield
    finally:
        with _lock:
            outermost_s = _before_s[0]
            _before_s.pop()
            if not _before_s:
                sys.setswitchinterval(outermost_s)
