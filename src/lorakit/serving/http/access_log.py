"""The access log: one JSON object a line for each request, without prompts unless asked for.

A thread writes the lines, so that a slow disk holds up no request. A line that cannot be written,
because the disk is full for example, is lost and counted; the server goes on.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from lorakit.errors import DiskError

_WAITING_LINES = 10_000

_log = logging.getLogger(__name__)


class AccessLog:
    """Writes lines to a file, to stderr, or nowhere.

    Attributes:
        lost: Number of lines that could not be written.
        with_prompts: Whether prompts and answers are part of the lines.
    """

    def __init__(self, place: Path | None = None, *, with_prompts: bool = False):
        """Open the log.

        Args:
            place: A file to append to; "-" is stderr, None keeps no log.
            with_prompts: Whether prompts and answers are part of the lines.

        Raises:
            DiskError: The file cannot be opened.
        """
        self.lost = 0
        self.with_prompts = with_prompts
        self._place = place
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING_LINES)
        self._file = None if place is None else _open(place)
        self._has_complained = False
        self._writer = threading.Thread(target=self._write, name="access-log", daemon=True)
        if self._file is not None:
            self._writer.start()

    def add(self, **values: Any) -> None:
        """Add a line; values that are None are left out."""
        if self._file is None:
            return
        given = {name: value for name, value in values.items() if value is not None}
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **given})
        try:
            self._lines.put_nowait(line + "\n")
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Write what waits and close the file."""
        if self._file is None or not self._writer.is_alive():
            return
        self._lines.put(None)
        self._writer.join(timeout=5)

    def _write(self) -> None:
        file = self._file
        while file is not None and (line := self._lines.get()) is not None:
            try:
                file.write(line)
                file.flush()
            except (OSError, ValueError) as error:
                self.lost += 1
                if not self._has_complained:
                    self._has_complained = True
                    _log.warning("The access log in %s loses lines: %s.", self._place, error)
                file = self._reopen(file)
        if file is not None and file is not sys.stderr:
            _close(file)

    def _reopen(self, file: TextIO) -> TextIO:
        """Return a file without the line that failed, which Python would write again."""
        if self._place is None or file is sys.stderr:
            return file
        _close(file)
        try:
            return _open(self._place)
        except DiskError:
            return file


def _open(place: Path) -> TextIO:
    if str(place) == "-":
        return sys.stderr
    try:
        return place.open("a", encoding="utf-8")
    except OSError as error:
        raise DiskError(
            f"The access log cannot be written to {place}: {error.strerror}. Name another file "
            "with --access-log."
        ) from None


def _close(file: TextIO) -> None:
    try:
        file.close()
    except OSError:
        _log.debug("Closing the access log failed; the lines it held are counted as lost.")
