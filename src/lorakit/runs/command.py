"""A command of lorakit: its line in a terminal, and a process beside this one that runs it.

The process is the command line itself, so its errors are the same sentences and its files are the
same files.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lorakit.errors import LorakitError

_KEPT_CHARACTERS = 200_000
_GRACE_S = 5.0
_ENVIRONMENT = {
    "NO_COLOR": "1",
    "TERM": "dumb",
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8",
}


class Command:
    """One run of a command.

    Attributes:
        title: What it does, for people.
        words: The command and its arguments, without "lorakit".
        output: What it has printed to stdout.
        messages: What it has printed to stderr.
        is_cancelled: Whether it was cancelled.
        seconds: Seconds that it has run so far, or ran.
    """

    def __init__(self, root: Path, title: str, words: Sequence[str]):
        """Start it in a folder.

        Args:
            root: The folder, in which relative paths are read.
            title: What it does.
            words: The command and its arguments.

        Raises:
            LorakitError: The system cannot start a process.
        """
        self.title = title
        self.words = tuple(words)
        self.output = self.messages = ""
        self._started_s = time.monotonic()
        self._ended_s: float | None = None
        self.is_cancelled = False
        self._code: int | None = None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lorakit", *self.words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=root,
                env=os.environ | _ENVIRONMENT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise LorakitError(
                f"Cannot start `{self.line}`: {error.strerror or error}. End other processes, and "
                "try again."
            ) from None
        self._thread = threading.Thread(target=self._follow, name=f"command-{title}", daemon=True)
        self._thread.start()

    @property
    def line(self) -> str:
        """The line to type into a terminal for the same."""
        return shlex.join(["lorakit", *self.words])

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._code is not None

    @property
    def has_succeeded(self) -> bool:
        """Whether it has done what it should."""
        return self._code == 0

    @property
    def seconds(self) -> float:
        """Seconds that it has run so far, or ran."""
        return (self._ended_s or time.monotonic()) - self._started_s

    @property
    def problem(self) -> str | None:
        """The sentence of its error; None if there was none, or it goes on."""
        if self._code in (None, 0):
            return None
        if self.is_cancelled:
            return f"{self.title}: cancelled; nothing was written."
        sentence = error_in(self.messages)
        if sentence is not None:
            return sentence
        last = self.messages.strip().rpartition("\n")[2]
        return (
            f"`{self.line}` has failed: got exit status {self._code}, expected 0."
            + (f" Its last line was: {last}" if last else "")
            + " Run it in a terminal to see more."
        )

    @property
    def written(self) -> list[str]:
        """The files that it says it wrote."""
        lines = self.output.splitlines()
        if not self.has_succeeded or "Wrote" not in lines:
            return []
        found = []
        for line in lines[lines.index("Wrote") + 1 :]:
            if not line.startswith("  "):
                break
            found.append(line.strip().rpartition("  (")[0] or line.strip())
        return found

    def cancel(self) -> None:
        """End it; what it was writing is removed."""
        if self.is_over or self.is_cancelled:
            return
        self.is_cancelled = True
        threading.Thread(target=self._end, name=f"cancel-{self.title}", daemon=True).start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it has ended."""
        self._thread.join(timeout_s)

    def _end(self) -> None:
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(self._process.pid, number)

    def _follow(self) -> None:
        with self._process:
            reading = threading.Thread(target=self._read_messages, daemon=True)
            reading.start()
            for line in self._process.stdout or ():
                self.output = (self.output + line)[-_KEPT_CHARACTERS:]
            reading.join()
            code = self._process.wait()
        self._ended_s = time.monotonic()
        self._code = code

    def _read_messages(self) -> None:
        for line in self._process.stderr or ():
            self.messages = (self.messages + line)[-_KEPT_CHARACTERS:]


def error_in(printed: str) -> str | None:
    """Return the sentence of the error that a command has printed last, or None."""
    _, is_there, sentence = f"\n{printed}".rpartition("\nError:")
    return sentence.strip() if is_there else None


def train_command(
    recipe: str, overrides: Sequence[str] = (), *, resume: bool = False
) -> tuple[str, ...]:
    """Return the words of `lorakit train`.

    Args:
        recipe: Path of the recipe, relative to the folder of the studio.
        overrides: Dotted overrides, such as "training.num_train_epochs=6".
        resume: Whether to train a run on.
    """
    return ("lorakit", "train", recipe, *overrides, *(("--resume",) if resume else ()))


def command_line(root: Path, words: Sequence[str]) -> str:
    """Return a line for a terminal: the words, after a change into the folder if needed.

    >>> command_line(Path("/data/my runs"), ("lorakit", "train", "a b.yaml"))
    "cd '/data/my runs' && lorakit train 'a b.yaml'"
    """
    line = shlex.join(words)
    is_here = Path(os.getcwd()).resolve() == root
    return line if is_here else f"cd {shlex.quote(str(root))} && {line}"
