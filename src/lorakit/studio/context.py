"""What every page of this process looks at: the folder of runs, and how it was opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import LorakitError
from lorakit.runs.paths import resolve


@dataclass(frozen=True)
class Studio:
    """One studio: a window on a folder of runs.

    Attributes:
        root: The folder; absolute.
    """

    root: Path

    def path(self, relative: str) -> Path:
        """Return the path of something in the folder; see `resolve` for what is refused."""
        return resolve(self.root, relative)

    def relative(self, path: Path) -> str:
        """Return a path below the folder as addresses of pages have it, with slashes."""
        return path.relative_to(self.root).as_posix()


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
