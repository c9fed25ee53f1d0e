"""Report how far long work on data is, to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is."""

    what: str
    """What is done, such as "Tokenizing"."""
    done: int
    total: int
    unit: str
    """What is counted, such as "examples" or "bytes"."""


_listener: ContextVar[Callable[[Progress], None] | None] = ContextVar("listener", default=None)


@contextmanager
def reporting_progress(listener: Callable[[Progress], None]) -> Iterator[None]:
    """Report the progress of work on large data inside the block.

    Args:
        listener: Called at the beginning of each piece of work, after each part of it and at its
            end, when `done` is `total`.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report_progress(what: str, done: int, total: int, unit: str = "examples") -> None:
    """Tell the listener, if there is one, how far a piece of work is."""
    listener = _listener.get()
    if listener is not None:
        listener(Progress(what, done, total, unit))
