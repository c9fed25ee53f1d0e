"""Compute in short-lived processes that have torch already.

A page must neither import torch nor wait for it, and a plan measures the process that makes it. One
process, started ahead, imports the libraries and does nothing else; every computation is a fork of
it, which begins at once, can be killed at any moment and gives its memory back.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from lorakit.errors import LorakitError, StoppedError, first_line
from lorakit.libraries.logs import muting_libraries

_LIBRARIES = (
    *("lorakit.planning.alternatives", "lorakit.training.recognition", "trl", "datasets"),
    *("sklearn.metrics", "matplotlib.figure", "torch.utils.tensorboard"),
)
"""The last ones are imported by a run that trains; the memory of a plan counts them so."""

_MUTED = ("transformers", "datasets", "trl", "accelerate", "torch", "huggingface_hub")
_FORKS = "forkserver" in multiprocessing.get_all_start_methods()

P = ParamSpec("P")
T = TypeVar("T")

Told = Callable[[str, float | None], None]
"""Takes what a computation is doing, and the share that is done or None."""

_senders: list[Connection] = []
"""Where this process sends what it says; empty in one that computes nothing for another."""


class Computation(Generic[T]):
    """A function that runs in another process."""

    def __init__(
        self, directory: Path, function: Callable[P, T], *args: P.args, **options: P.kwargs
    ):
        """Describe a computation, which `result` starts.

        Args:
            directory: Working directory, to which the paths in a recipe are relative.
            function: A function of this package.
            args: Its arguments, which can be pickled as its result can.
            options: Its arguments by name.
        """
        self._call = (str(directory), function, args, options)
        self._process: Any = None
        self._is_cancelled = False
        self._changing = threading.Lock()

    def result(self, told: Told | None = None) -> T:
        """Start the function, wait for it and return its result.

        The first computation of a program waits until the libraries are imported.

        Args:
            told: Called with what the function passes to `say`.

        Raises:
            LorakitError: The function raised it, failed in another way, or was killed.
            StoppedError: It was cancelled.
        """
        warm_up()
        context: Any = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_compute, args=(sender, *self._call), daemon=True)
        if not self._is_cancelled:
            process.start()  # waits for the imports, so that a cancellation comes later or before
            sender.close()
            with self._changing:
                self._process = process
                if self._is_cancelled:
                    process.kill()
            is_done, value = _receive(receiver, told)
            process.join()
            if is_done:
                return value
            if not self._is_cancelled:
                raise value or LorakitError(
                    f"The computation ended without an answer (exit code {process.exitcode}), "
                    "which happens when the memory is full. Close other programs, or try again."
                )
        raise StoppedError("Cancelled: nothing was changed.")

    def cancel(self) -> None:
        """Kill the process; `result` raises StoppedError."""
        with self._changing:
            self._is_cancelled = True
            if self._process is not None and self._process.is_alive():
                self._process.kill()


def say(words: str, share: float | None = None) -> None:
    """Tell the process that waits for this computation what it is doing.

    Args:
        words: A short text, such as "Computing the gradients".
        share: Part that is done, from 0 to 1; None if it cannot be known.
    """
    for sender in _senders:
        sender.send((None, (words, share)))


def _receive(receiver: Connection, told: Told | None) -> tuple[bool, Any]:
    """Return whether a process has a result, and the result or its error."""
    with receiver:
        try:
            while True:
                is_done, value = receiver.recv()
                if is_done is not None:
                    return is_done, value
                if told is not None:
                    told(*value)
        except EOFError:
            return False, None


def warm_up() -> None:
    """Start the process that imports the libraries, unless it runs."""
    if not _FORKS:
        return
    from multiprocessing import forkserver

    multiprocessing.get_context("forkserver").set_forkserver_preload(list(_LIBRARIES))
    forkserver.ensure_running()


def _compute(
    sender: Connection,
    directory: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    """Run a function and send its result, or its error."""
    os.chdir(directory)
    _senders.append(sender)
    try:
        with muting_libraries(*_MUTED):
            answer = (True, function(*args, **options))
    except LorakitError as error:
        answer = (False, error)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        reason = f"{type(error).__name__}: {first_line(error)}"
        where = "The terminal of `lorakit studio` shows where."
        answer = (False, LorakitError(f"This failed unexpectedly ({reason}). {where}"))
    sender.send(answer)
    sender.close()
