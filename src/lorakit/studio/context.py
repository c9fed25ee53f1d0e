"""What every page of this process looks at: the folder of runs, and how it was opened."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from lorakit.errors import LorakitError
from lorakit.runs.index import RunIndex, RunSummary
from lorakit.runs.paths import resolve
from lorakit.runs.queue import RunQueue
from lorakit.runs.trash import Trash

_FRESH_S = 0.5
"""Pages that ask within this time share one look at the folder."""


class Studio:
    """One studio: a window on a folder of runs.

    Attributes:
        root: The folder; absolute.
        api_key: Key with which other programs call the models of the playground.
        index: Its runs.
        queue: What waits and runs.
        trash: What was deleted.
    """

    def __init__(self, root: Path, api_key: str = ""):
        """Open a folder; see the attributes."""
        self.root, self.api_key = root, api_key
        self.index, self.queue, self.trash = RunIndex(root), RunQueue(root), Trash(root)
        self._looking = threading.Lock()
        self._runs: list[RunSummary] = []
        self._until_s = 0.0

    def path(self, relative: str) -> Path:
        """Return the path of something in the folder; see `resolve` for what is refused."""
        return resolve(self.root, relative)

    def relative(self, path: Path) -> str:
        """Return a path below the folder as addresses of pages have it, with slashes."""
        return path.relative_to(self.root).as_posix()

    def runs(self, *, fresh: bool = False) -> list[RunSummary]:
        """Return all runs; takes milliseconds, so call it in a thread.

        Args:
            fresh: Whether to look again even if another page has just looked.
        """
        with self._looking:
            begun_s = time.monotonic()
            if fresh or begun_s >= self._until_s:
                self._runs = self.index.refresh()
                ended_s = time.monotonic()
                # A folder that takes long to look through is looked at less often.
                self._until_s = ended_s + max(_FRESH_S, 50 * (ended_s - begun_s))
            return self._runs


_opened: list[Studio] = []


def open_studio(studio: Studio) -> None:
    """Make `studio` the one that pages of this process show."""
    _opened[:] = [studio]


def current() -> Studio:
    """Return the studio of this process.

    Raises:
        LorakitError: None has been opened.
    """
    if not _opened:
        raise LorakitError("No studio is open in this process. Call `open_studio` first.")
    return _opened[0]
