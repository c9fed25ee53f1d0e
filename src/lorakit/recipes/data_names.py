"""The names of data in a recipe: files by their ending, folders, hub ids."""

from __future__ import annotations

import os
from pathlib import Path

from lorakit.errors import DataError

TEXT_TABLES = (".csv", ".tsv")
ENDINGS = (*TEXT_TABLES, ".json", ".jsonl", ".parquet")
"""The file endings that can be read."""

_ARCHIVES = (".gz", ".bz2", ".xz", ".zst", ".zip")


def is_local(name: str) -> bool:
    """Return whether a recipe names data on this machine, existing or not, and not on the hub."""
    return Path(name).expanduser().exists() or looks_like_a_path(name)


def is_glob(name: str) -> bool:
    """Return whether a name is a pattern of files rather than one file.

    >>> is_glob("chats/*.jsonl"), is_glob("chats/a.jsonl")
    (True, False)
    """
    return any(mark in name for mark in "*?[") and not Path(name).expanduser().exists()


def looks_like_a_path(name: str) -> bool:
    """Return whether a name cannot be a hub id."""
    parts = Path(name).parts
    return (
        name.startswith((".", "~", os.sep))
        or Path(name).suffix.lower() in ENDINGS
        or len(parts) > 2
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )


def require_known_ending(path: Path, key: str) -> None:
    """Refuse a file whose ending does not say how to read it.

    Args:
        path: The file.
        key: The recipe key that names it.

    Raises:
        DataError: Lists the endings that can be read.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        what_to_do = (
            "Unpack the file first."
            if ending in _ARCHIVES
            else "Convert the file, or rename it to what it holds."
        )
        raise DataError(
            f"Could not read {key}: got '{path}' with the ending '{path.suffix}', expected one of "
            f"{', '.join(ENDINGS)}. {what_to_do}"
        )
