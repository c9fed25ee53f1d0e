"""Ctrl-C, SIGTERM and SIGHUP: one line, the shell's exit code, and nothing half-written.

The handlers leave the process at once. An exception would have to find its way through imports,
callbacks of C++ code and clauses that catch everything, and does not always arrive; and a process
whose threads are still at work may abort while Python takes it down. Two things are not ended at
once: a training run, which is asked to save a checkpoint first, and Ray, which has processes of
its own to end. A second signal ends these too.

Nothing but the standard library is imported here, so that the handlers are there before anything
else is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorakit.training.stop_request import StopRequest

_WORDS = {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Terminated."}
if hasattr(signal, "SIGHUP"):
    _WORDS[signal.SIGHUP] = "The terminal has closed."
_SHELL = 128
"""What the shell adds to a signal's number for the exit code."""
_SAME_S = 5.0
"""Launchers hand a signal on to processes that have had it from the terminal; within this time
a second one is the same."""
_SHOW_CURSOR = b"\x1b[?25h"
_CLEAR_LINE = b"\r\x1b[K"


def nothing_more() -> str:
    """Say nothing beside the reason."""
    return ""


class Ending:
    """How this process takes the next signal."""

    def __init__(self) -> None:
        self.last_words: Callable[[], str] = nothing_more
        """Says what is left behind, and how to go on from there."""
        self.stop: StopRequest | None = None
        """What to set where a run is in training."""
        self._raises = False
        self._has_raised = False
        self._number = 0
        self._at_s = 0.0
        self._process = 0

    @property
    def number(self) -> int:
        """The signal that came first; 0 as long as none has."""
        return self._number

    def install(self) -> None:
        """Take the signals, but those that whoever started this process wants to be ignored."""
        self._process = os.getpid()
        for number in _WORDS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._take)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Inside the block, let the first signal raise KeyboardInterrupt."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    @contextmanager
    def saying(self, last_words: Callable[[], str], stop: StopRequest | None) -> Iterator[None]:
        """Inside the block, end with these words, or ask a run to stop first."""
        self.last_words, self.stop = last_words, stop
        try:
            yield
        finally:
            self.last_words, self.stop = nothing_more, None

    def exit_code(self) -> int:
        """Return the shell's exit code for the signal that came, by default Ctrl-C."""
        return _SHELL + (self._number or signal.SIGINT)

    def reason(self) -> str:
        """Return the reason in a word, by default Ctrl-C."""
        return _WORDS[signal.Signals(self._number or signal.SIGINT)]

    def _take(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._take_in_child(number)
            return
        if number == getattr(signal, "SIGHUP", None):
            _write_nowhere()
        if not self._number:
            self._number, self._at_s = number, time.monotonic()
        if self.stop is not None and self.stop.is_observed:
            if not self.stop.number:
                self.stop.set(number)
                if not _is_launched():  # a launcher ends processes also because another failed
                    self._say("Stopping after this step; a second signal ends at once.")
                return
            if _is_launched() and time.monotonic() - self._at_s < _SAME_S:
                return
        if self._raises and not self._has_raised:
            self._has_raised = True
            raise KeyboardInterrupt
        self.leave()

    def _take_in_child(self, number: int) -> None:
        """End a worker of a data loader only when its parent says so."""
        if number == signal.SIGTERM:
            os._exit(_SHELL + number)

    def leave(self) -> None:
        """End this process at once, with a line."""
        self._say(" ".join(filter(None, (self.reason(), self.last_words()))))
        atomic = sys.modules.get("lorakit.files.atomic")
        remove = getattr(atomic, "remove_unfinished", None)
        if remove is not None:  # else nothing has been written by then
            remove()
        os._exit(self.exit_code())

    def _say(self, text: str) -> None:
        # Past Python's buffers, in which the main thread may be writing just now.
        if os.environ.get("RANK", "0") != "0":
            return
        with contextlib.suppress(OSError, ValueError):
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), _SHOW_CURSOR + _CLEAR_LINE)
            os.write(2, f"{text}\n".encode())


def _is_launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _write_nowhere() -> None:
    """Let output go nowhere instead of to a terminal that is not there any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            os.dup2(nowhere, descriptor)


ending = Ending()
"""How this process ends; it takes no signals before `install` is called."""
