"""Data files below a folder, and receiving new ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lorakit.errors import DataError, DiskError
from lorakit.files.atomic import replacing_file
from lorakit.files.disks import mount_point, reporting_disk_errors, size_text
from lorakit.recipes.data_names import ENDINGS, require_known_ending
from lorakit.runs.paths import visible_folders

FOLDER = "data"
"""Folder that receives files."""

_MOST_FILES = 500
_LONGEST_NAME_BYTES = 200
_ROOM_LEFT_BYTES = 50_000_000
"""Bytes to leave free, so that a run can still write its first files."""
_FILES_OF_A_MODEL = {"config.json", "adapter_config.json", "tokenizer.json"}
_SAVED_DATASET = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class DataFile:
    """A file, or a saved dataset, that may hold examples."""

    name: str
    """The value of `data.train`: a path relative to the folder."""
    size_bytes: int
    changed_s: float
    """When it was last written, in seconds since 1970."""


def find_data(root: Path) -> list[DataFile]:
    """Return the data below a folder, newest first; files of models and runs are left out."""
    found: list[DataFile] = []
    left_out: set[Path] = set()
    for folder, names in visible_folders(root):
        if any(name in names for name in _SAVED_DATASET):
            found.append(_data_file(folder, root))
        elif _is_of_a_model_or_run(names) or folder.parent in left_out:
            left_out.add(folder)
        else:
            found += [
                _data_file(folder / name, root)
                for name in names
                if Path(name).suffix.lower() in ENDINGS and not name.startswith(".")
            ]
        if len(found) >= _MOST_FILES:
            break
    return sorted(found, key=lambda file: file.changed_s, reverse=True)[:_MOST_FILES]


def _is_of_a_model_or_run(names: list[str]) -> bool:
    is_run = "recipe.yaml" in names and "environment.json" in names
    is_search = "trials.csv" in names and ("search.yaml" in names or "study.yaml" in names)
    return is_run or is_search or not _FILES_OF_A_MODEL.isdisjoint(names)


def _data_file(path: Path, root: Path) -> DataFile:
    facts = path.stat()
    return DataFile(path.relative_to(root).as_posix(), facts.st_size, facts.st_mtime)


@contextmanager
def receiving(root: Path, name: str, size_bytes: int | None) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield the path of a new data file, and a file to write its bytes to.

    The file appears when the block ends without an error. A name that is taken gets a number.

    Args:
        root: The folder of the studio; the file is written to `data` below it.
        name: The file's name where it comes from.
        size_bytes: Its size; None if it is not known.

    Raises:
        DataError: The name has an ending that cannot be read, or control characters.
        DiskError: The disk has too little space, or is not writable.
    """
    path = _free_path(root / FOLDER, _check_name(name))
    with reporting_disk_errors(path):
        path.parent.mkdir(exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    if size_bytes is not None and size_bytes > free - _ROOM_LEFT_BYTES:
        raise DiskError(
            f"Cannot write {name} to {path.parent}: got a file of {size_text(size_bytes)}, but the "
            f"disk at {mount_point(path)} has {size_text(free)} free. Free some space there, or "
            "train on a part of the file."
        )
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        yield path, file
        if size_bytes is not None and file.tell() != size_bytes:
            raise DataError(
                f"{name} arrived incomplete: got {file.tell():,} bytes, expected {size_bytes:,}. "
                "Drop it again."
            )


def _check_name(name: str) -> str:
    """Return the last part of a file's name, if it can be that of a data file."""
    last = name.replace("\\", "/").rpartition("/")[2].strip()
    require_known_ending(Path(last), "data.train")
    is_usable = last.isprintable() and not last.startswith(".")
    if not is_usable or len(os.fsencode(last)) > _LONGEST_NAME_BYTES:
        raise DataError(
            f"Could not take the file {last[:80]!r}: expected a name of at most "
            f"{_LONGEST_NAME_BYTES} bytes without control characters. Rename it."
        )
    return last


def _free_path(folder: Path, name: str) -> Path:
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
    return path
