"""Walk a folder of unknown size, within bounds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

_DEEPEST = 6
_MOST_FOLDERS = 5000
_NOT_ENTERED = {"node_modules", "site-packages", "__pycache__", "tensorboard"}


def visible_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and those below it, each with the sorted names of its files.

    Hidden folders, links and checkpoints are not entered. A folder that cannot be read is left out.
    """
    for place, folders, files in islice(os.walk(root), _MOST_FOLDERS):
        here = Path(place)
        is_deep = len(here.relative_to(root).parts) >= _DEEPEST
        folders[:] = [] if is_deep else sorted(name for name in folders if _is_entered(here, name))
        yield here, sorted(files)


def _is_entered(parent: Path, name: str) -> bool:
    is_left_out = name.startswith((".", "checkpoint-")) or name in _NOT_ENTERED
    return not is_left_out and not (parent / name).is_symlink()
