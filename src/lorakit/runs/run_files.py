"""The files of a run that are worth downloading, and the newest lines of its log."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lorakit.runs.paths import is_utf8

_MOST_FILES = 500
_LOG_BYTES = 64_000
"""The end of a log that is shown by default; the whole file can be downloaded."""
_HIDDEN = re.compile(r"(^|/)\.")
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@dataclass(frozen=True)
class RunFile:
    """A file of a run."""

    name: str
    """Its path below the run directory, with slashes."""
    size_bytes: int


def files_of(run: Path) -> list[RunFile]:
    """Return the regular files of a run: results first, then the adapter, then checkpoints.

    Hidden files and symbolic links are left out; a link could lead anywhere.

    Args:
        run: The run directory.
    """
    found: list[RunFile] = []
    for folder, folders, names in os.walk(run):
        folders[:] = [name for name in folders if not Path(folder, name).is_symlink()]
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(run).as_posix()
            if _HIDDEN.search(relative) or not is_utf8(relative):
                continue
            if path.is_symlink() or not path.is_file():
                continue
            try:
                found.append(RunFile(relative, path.stat().st_size))
            except FileNotFoundError:  # a running process has replaced it
                continue
    return sorted(found, key=_place)[:_MOST_FILES]


def _place(file: RunFile) -> tuple[int, str]:
    top, slash, _ = file.name.partition("/")
    if not slash:
        return 0, file.name
    return {"adapter": 1, "tensorboard": 3}.get(top, 2), file.name


class LogTail:
    """The end of a log file as a terminal would show it."""

    def __init__(self, path: Path, most_bytes: int = _LOG_BYTES):
        """Follow a log.

        Args:
            path: The file; it may appear later.
            most_bytes: Bytes at its end that are read.
        """
        self.path, self._most_bytes = path, most_bytes
        self._seen: tuple[int, int] | None = None

    def read(self) -> str | None:
        """Return the text to show, or None if nothing has changed since the last call."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_ino, status.st_size)
                if seen == self._seen:
                    return None
                self._seen = seen
                start = max(0, status.st_size - self._most_bytes)
                file.seek(start)
                data = file.read(self._most_bytes)
        except OSError:
            had_text, self._seen = self._seen is not None, None
            return "" if had_text else None
        if start:
            data = data[data.find(b"\n") + 1 :]
        return as_shown(data.decode("utf-8", errors="replace"))


def as_shown(text: str) -> str:
    r"""Return output of a terminal as text: without its colours, progress bars at their last state.

    >>> as_shown("\x1b[31mred\x1b[0m\n 10%\r 50%\r100%\ndone\n")
    'red\n100%\ndone\n'
    """
    plain = _TERMINAL_CODES.sub("", text).replace("\r\n", "\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in plain.split("\n"))
