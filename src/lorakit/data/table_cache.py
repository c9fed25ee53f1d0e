"""Tables on disk that are mapped into memory, and found by what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lorakit.errors import DiskError
from lorakit.files.atomic import scratch_directory
from lorakit.files.user_cache import user_cache

if TYPE_CHECKING:
    from lorakit.recipes.data_section import DataConfig

_FACTS = "facts.json"
_BEING_WRITTEN = "being-written-"
_LONGEST_WRITE_S = 24 * 3600
_READ_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Kept:
    """What was kept under a key."""

    tables: dict[str, pa.Table]
    facts: dict[str, Any]
    """Values that JSON can hold."""


class TableCache:
    """A cache of tables by key, with a budget of bytes.

    Every key has a directory, which appears complete or not at all. A damaged entry is removed, so
    that it is made again. Where the budget is spent, the entries leave that were not read for
    longest; processes that have mapped them keep what they mapped. What cannot be kept is used
    without being kept, and `problem` says why.
    """

    def __init__(self, directory: Path, budget_bytes: int):
        """Use a directory, which is created when something is kept.

        Args:
            directory: The directory of all entries.
            budget_bytes: Largest size of all entries together; 0 keeps nothing.
        """
        self.directory = directory
        self.budget_bytes = budget_bytes
        self.problem: str | None = None
        """Why something could not be kept, such as a full disk; None while all is well."""

    @classmethod
    def of(cls, data: DataConfig) -> TableCache:
        """Return the cache that a recipe asks for."""
        return cls(user_cache("data", data.cache_directory), data.cache_bytes)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on why something could not be kept, if so."""
        if self.problem is None:
            return ()
        return (
            f"Prepared data could not be kept in {self.directory} ({self.problem}), so the next "
            "run prepares it again (data.cache_directory).",
        )

    def get(self, key: str) -> Kept | None:
        """Return what is kept under a key, mapped into memory; None if there is nothing intact."""
        folder = self.directory / key
        if not self.budget_bytes or not folder.is_dir():
            return None
        try:
            values = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            if values["key"] != key:
                raise ValueError(f"{folder} has been copied or renamed.")
            tables = {}
            for name, checksum in values["checksums"].items():
                path = folder / f"{name}.arrow"
                if _checksum(path) != checksum:
                    raise ValueError(f"{path} has other content than was written.")
                tables[name] = _map(path)
            os.utime(folder)  # the time of the last use
            return Kept(tables, values["facts"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def put(self, key: str, tables: Mapping[str, pa.Table], facts: Mapping[str, Any]) -> Kept:
        """Keep tables under a key, and return them, mapped if they could be kept."""
        here = Kept(dict(tables), dict(facts))
        size = sum(table.nbytes for table in tables.values())
        if not self.budget_bytes or self.problem is not None:
            return here
        if size > self.budget_bytes:
            self.problem = (
                f"it has {size / 1e9:.3g} GB, and data.cache_bytes is {self.budget_bytes / 1e9:.3g}"
            )
            return here
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(size)
            # Nothing waits for the disk: checksums find what a power cut leaves.
            with scratch_directory(_BEING_WRITTEN, self.directory) as folder:
                checksums = {}
                for name, table in tables.items():
                    _write(table, folder / f"{name}.arrow")
                    checksums[name] = _checksum(folder / f"{name}.arrow")
                values = {"key": key, "checksums": checksums, "facts": here.facts}
                (folder / _FACTS).write_text(json.dumps(values), encoding="utf-8")
                folder.rename(self.directory / key)
        except (OSError, DiskError) as error:
            other = self.get(key)  # another process may have kept the same meanwhile
            if other is None:
                cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
                self.problem = cause.strerror or str(cause)
            return other or here
        return self.get(key) or here

    def _make_room(self, needed_bytes: int) -> None:
        """Remove the entries that were used least recently, as far as the budget needs it."""
        for path in self.directory.glob(f"{_BEING_WRITTEN}*"):  # of processes that were killed
            if time.time() - path.stat().st_mtime > _LONGEST_WRITE_S:
                shutil.rmtree(path, ignore_errors=True)
        entries = [path for path in self.directory.iterdir() if (path / _FACTS).is_file()]
        sizes = {path: sum(f.stat().st_size for f in path.iterdir()) for path in entries}
        for path in sorted(entries, key=lambda path: path.stat().st_mtime):
            if sum(sizes.values()) + needed_bytes <= self.budget_bytes:
                return
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]


@cache
def preparing_code() -> str:
    """Return a digest of the code that reads and encodes examples, a part of every key.

    What another version has kept is thereby not found.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("data", "training/tasks"):
        for file in sorted((package / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


class Spool:
    """Keeps tables on disk rather than in memory, for as long as this process uses them.

    Each is written to a temporary file, mapped, and its name removed, so that nothing is left
    however the process ends. Where the disk is full, tables stay in memory.
    """

    def __init__(self) -> None:
        self._is_usable = os.name == "posix"  # elsewhere a mapped file cannot be removed

    def keep(self, table: pa.Table) -> pa.Table:
        """Return a table whose values are on disk."""
        if not self._is_usable:
            return table
        try:
            with scratch_directory("lorakit-data-") as folder:
                path = folder / "table.arrow"
                _write(table, path)
                return _map(path)
        except (OSError, DiskError):
            self._is_usable = False
            return table


def _write(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _map(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while read := file.read(_READ_AT_ONCE):
            checksum = zlib.crc32(read, checksum)
    return checksum
