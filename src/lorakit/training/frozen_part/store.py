"""Hidden states of examples on disk, found by the content of the example.

One SQLite file for each base, depth and kind of computation; processes share it. It is a cache: an
entry that is missing, damaged or cannot be written is computed again, and nothing else happens.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SUFFIX = ".sqlite"
_WAIT_S = 30.0
_MAPPED_BYTES = 1 << 40
_DELETED_AT_ONCE = 16
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
_SETTINGS = f"""
PRAGMA page_size = 16384;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
PRAGMA mmap_size = {_MAPPED_BYTES};
CREATE TABLE IF NOT EXISTS kept (
    key BLOB PRIMARY KEY, dtype TEXT, tokens INTEGER, checksum INTEGER, states BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS last_reads (key BLOB PRIMARY KEY, run INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (number INTEGER PRIMARY KEY);
"""
# A change of a row writes all of it, so what changes with each run is in another table.
# Nothing waits for the disk: a checksum finds what a power cut leaves, and it is computed again.


class HiddenStates:
    """A cache of tensors (tokens, hidden) by key, with a budget of bytes.

    Where the budget is spent, entries leave that no run has read for longest. Those of this run
    stay: epochs read all examples in turn, so an entry would leave just before it is read.

    Args:
        directory: Directory of the files of all bases; created if needed.
        name: Name of this base, depth and kind of computation.
        budget_bytes: Largest size of all files together, about.
    """

    def __init__(self, directory: Path, name: str, budget_bytes: int):
        self.path = directory / f"{name}{_SUFFIX}"
        self._name_checksum = zlib.crc32(name.encode())
        self.budget_bytes = budget_bytes
        self.problem: str | None = None
        """Why nothing more can be kept, such as a full disk; None while all is well."""
        self._connection: sqlite3.Connection | None = None
        self._run = 0
        self._touched: set[bytes] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            others = [path for path in directory.glob(f"*{_SUFFIX}") if path != self.path]
            self._other_files = sorted(others, key=lambda path: path.stat().st_mtime)
        except OSError as error:
            self.problem = str(error)
        else:
            self._open()

    @property
    def size_bytes(self) -> int:
        """Bytes in use; 0 if the file cannot be used."""
        sizes = self._rows(
            "SELECT (page_count - freelist_count) * page_size FROM "
            "pragma_page_count, pragma_freelist_count, pragma_page_size"
        )
        return sizes[0][0] if sizes else 0

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """Return what is known for some keys: (tokens, hidden) each, on the CPU."""
        columns = "key, dtype, tokens, checksum, states"
        marks = ",".join("?" * len(keys))
        rows = self._rows(f"SELECT {columns} FROM kept WHERE key IN ({marks})", keys)
        found: dict[bytes, Tensor] = {}
        for key, dtype, tokens, checksum, states in rows:
            if checksum == self._checksum(key, dtype, tokens, states):
                flat = torch.frombuffer(bytearray(states), dtype=_DTYPES[dtype])
                found[key] = flat.view(tokens, -1)
        self._touch([key for key in found if key not in self._touched])
        return found

    def put(self, states: Mapping[bytes, Tensor]) -> None:
        """Keep tensors (tokens, hidden) under their keys, as far as the budget allows."""
        insert = "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?, ?)"
        for key, tensor in states.items():
            if not self._make_room(tensor.nbytes):
                return
            flat = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()
            form = (str(tensor.dtype), len(tensor))
            row = (key, *form, self._checksum(key, *form, flat), flat)
            self._change_each(insert, [row])
            self._touch([key])

    # ---- room ----

    def _make_room(self, needed_bytes: int) -> bool:
        """Delete files that nobody uses, then entries of earlier runs; return whether it suffices.

        What others that train at the same time keep counts, and stays.
        """
        while self._connection is not None:
            if self.size_bytes + self._others_bytes() + needed_bytes <= self.budget_bytes:
                return True
            if self._other_files:
                oldest_file = self._other_files.pop(0)
                if not _is_in_use(oldest_file):
                    _remove(oldest_file)
                continue
            oldest = self._rows(
                "SELECT key FROM last_reads WHERE run < ? ORDER BY run LIMIT ?",
                (self._run, _DELETED_AT_ONCE),
            )
            if not oldest:
                return False
            for name in ("kept", "last_reads"):
                self._change_each(f"DELETE FROM {name} WHERE key = ?", oldest)
        return False

    def _others_bytes(self) -> int:
        """Return the bytes of all other files, with what is not yet written into them."""
        total = 0
        for path in self.path.parent.glob(f"*{_SUFFIX}*"):
            if not path.name.startswith(self.path.name):
                with suppress(OSError):  # another process has deleted it
                    total += path.stat().st_size
        return total

    def _touch(self, keys: Sequence[bytes]) -> None:
        """Write down, once in this run, that it reads some entries."""
        if keys:
            self._touched.update(keys)
            rows = [(key, self._run) for key in keys]
            self._change_each("INSERT OR REPLACE INTO last_reads VALUES (?, ?)", rows)

    # ---- the file ----

    def _open(self) -> None:
        """Open the file, a new one instead of a damaged one."""
        for is_last in (False, True):
            try:
                self._connection = sqlite3.connect(self.path, timeout=_WAIT_S)
                self._connection.executescript(_SETTINGS)
                with self._connection as connection:
                    connection.execute("INSERT INTO runs DEFAULT VALUES")
                    self._run = connection.execute("SELECT MAX(number) FROM runs").fetchone()[0]
            except sqlite3.DatabaseError as error:
                self.close()
                if is_last or _is_of_the_system(error):
                    self.problem = str(error)
                    return
                _remove(self.path)
            else:
                return

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return (
                []
                if self._connection is None
                else self._connection.execute(query, values).fetchall()
            )
        except sqlite3.DatabaseError as error:
            self._recover(error)
            return []

    def _change_each(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Execute a statement for each row of values, all or none."""
        try:
            if self._connection is not None:
                with self._connection as connection:
                    connection.executemany(statement, rows)
        except sqlite3.DatabaseError as error:
            self._recover(error)

    def _checksum(self, key: bytes, dtype: str, tokens: int, states: bytes) -> int:
        """Return a number that differs for other bytes, another form, key or base."""
        form = f"{dtype} {tokens}".encode()
        return zlib.crc32(states, zlib.crc32(form, zlib.crc32(key, self._name_checksum)))

    def _recover(self, error: sqlite3.DatabaseError) -> None:
        """Replace a damaged file by an empty one; stop writing if the disk is full or similar."""
        self.close()
        if _is_of_the_system(error):
            self.problem = str(error)
        else:
            _remove(self.path)
            self._open()


def _is_of_the_system(error: sqlite3.DatabaseError) -> bool:
    """Whether the disk, its rights or another process cause an error, not damage.

    SQLITE_ERROR says that a table is missing or another one than expected.
    """
    is_operational = isinstance(error, sqlite3.OperationalError)
    return is_operational and getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR


def _is_in_use(path: Path) -> bool:
    """Whether a file is open elsewhere: then it cannot leave the mode of a shared file."""
    with closing(sqlite3.connect(path, timeout=0)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.DatabaseError as error:
            return _is_of_the_system(error)
    return False


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
