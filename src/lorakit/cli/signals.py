"""Handle Ctrl-C, SIGTERM and SIGHUP: one line, the shell's exit code, no half-written files.

The handlers end the process immediately. An exception would have to pass through imports, C++
callbacks and clauses that catch everything, and does not always arrive; and a process whose
threads are still running may abort while Python shuts down. Two cases do not end immediately: a
training run first saves a checkpoint, and Ray first ends its processes. A second signal ends these
too.

This module imports nothing heavy, so that the handlers are installed first.
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

from lorakit.cli.launched import is_first, is_launched_in_parallel

if TYPE_CHECKING:
    from lorakit.training.stop_request import StopRequest

_REASONS = {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Terminated."}
if hasattr(signal, "SIGHUP"):
    _REASONS[signal.SIGHUP] = "The terminal has closed."
_SHELL = 128
"""The shell adds this to the number of a signal for the exit code."""
_SAME_S = 5.0
"""Launchers forward a signal that processes have already received from the terminal; within this
time a second signal counts as the same."""
_SHOW_CURSOR = b"\x1b[?25h"
_CLEAR_LINE = b"\r\x1b[K"


def no_last_words() -> str:
    """Return nothing to add to the reason."""
    return ""


class Ending:
    """Decides what the next signal does to this process."""

    def __init__(self) -> None:
        self.last_words: Callable[[], str] = no_last_words
        """Returns what remains on disk, and how to resume."""
        self.stop: StopRequest | None = None
        """Request to set while a run is training; None otherwise."""
        self._raises = False
        self._repeats = False
        self._has_raised = False
        self._number = 0
        self._at_s = 0.0
        self._process = 0

    @property
    def number(self) -> int:
        """Number of the first signal received; 0 before any."""
        return self._number

    def install(self) -> None:
        """Install the handlers, except for signals that the parent process set to be ignored."""
        self._process = os.getpid()
        for number in _REASONS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    @contextmanager
    def raising_interrupt(self) -> Iterator[None]:
        """Make the first signal inside the block raise KeyboardInterrupt."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    @contextmanager
    def repeating_interrupt(self) -> Iterator[None]:
        """Make each Ctrl-C inside the block raise KeyboardInterrupt; other signals end."""
        self._repeats = True
        try:
            yield
        finally:
            self._repeats = False

    @contextmanager
    def ending_with(
        self, last_words: Callable[[], str], stop: StopRequest | None
    ) -> Iterator[None]:
        """Set the last words of signals inside the block, and the run to stop first."""
        self.last_words, self.stop = last_words, stop
        try:
            yield
        finally:
            self.last_words, self.stop = no_last_words, None

    def exit_code(self) -> int:
        """Return the shell's exit code for the signal received, by default Ctrl-C."""
        return _SHELL + (self._number or signal.SIGINT)

    def reason(self) -> str:
        """Return the reason for ending, by default Ctrl-C."""
        return _REASONS[signal.Signals(self._number or signal.SIGINT)]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._handle_in_child(number)
            return
        if self._repeats and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == getattr(signal, "SIGHUP", None):
            _redirect_to_null()
        if not self._number:
            self._number, self._at_s = number, time.monotonic()
        if self.stop is not None and self.stop.is_observed:
            if not self.stop.number:
                self.stop.set(number)
                if (
                    not is_launched_in_parallel()
                ):  # a launcher also ends processes because another failed
                    self._say(
                        "Stopping after this step, or at the end of the run if it was the last; a "
                        "second signal ends immediately."
                    )
                return
            if is_launched_in_parallel() and time.monotonic() - self._at_s < _SAME_S:
                return
        if self._raises and not self._has_raised:
            self._has_raised = True
            raise KeyboardInterrupt
        self.leave()

    def _handle_in_child(self, number: int) -> None:
        """End a data loader worker only on the SIGTERM of its parent."""
        if number == signal.SIGTERM:
            os._exit(_SHELL + number)

    def leave(self) -> None:
        """Print one line and end this process immediately."""
        self._say(" ".join(filter(None, (self.reason(), self.last_words()))))
        atomic = sys.modules.get("lorakit.files.atomic")
        remove = getattr(atomic, "remove_unfinished", None)
        if remove is not None:  # otherwise nothing has been written yet
            remove()
        os._exit(self.exit_code())

    def _say(self, text: str) -> None:
        # Bypass Python's buffers: the main thread may be writing to them.
        if not is_first():
            return
        with contextlib.suppress(OSError, ValueError):
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), _SHOW_CURSOR + _CLEAR_LINE)
            os.write(2, f"{text}\n".encode())


def _redirect_to_null() -> None:
    """Redirect output from a terminal that no longer exists to the null device."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            os.dup2(nowhere, descriptor)


ending = Ending()
"""The handler of this process; inactive before `install` is called."""
