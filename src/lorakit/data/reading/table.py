"""The examples of a file: a table, and the first line of each example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features

from lorakit.errors import DataError, escaped, first_few

CHUNK_EXAMPLES = 5_000
"""Number of examples that are held as Python objects at once while a file is read."""

LARGE_FILE_BYTES = 16_000_000
"""Size from which a file is read into tables on disk, which are kept for later runs."""

Keep = Callable[[pa.Table], pa.Table]
"""Takes a part of a file, and returns it as it is kept until the whole file has been read."""


def keep_in_memory(table: pa.Table) -> pa.Table:
    """Return a table as it is."""
    return table


@dataclass(frozen=True)
class FileExamples:
    """The examples of a file."""

    dataset: Dataset
    lines: np.ndarray | None = None
    """First line of each example, from 1; None if the file has no lines."""
    notes: tuple[str, ...] = ()
    """Notes on how the file was read, where that is ambiguous."""
    files: tuple[str, ...] = ()
    """The files, if there are several."""
    numbers: np.ndarray | None = None
    """Index of each example in its file, if there are several."""
    file_of: np.ndarray | None = None
    """Index in `files` of each example's file, if there are several."""

    def select(self, chosen: np.ndarray) -> FileExamples:
        """Return some of the examples."""
        parts = (self.lines, self.numbers, self.file_of)
        lines, numbers, file_of = (None if part is None else part[chosen] for part in parts)
        if numbers is None:
            numbers = chosen
        dataset = self.dataset.select(chosen)
        return FileExamples(dataset, lines, self.notes, self.files, numbers, file_of)


def require_names(names: Iterable[str], where: str) -> None:
    """Refuse invalid column names, and names that several columns have.

    Args:
        names: The names of the columns.
        where: The recipe key and the file, for errors.

    Raises:
        DataError: A name has a NUL character or half a surrogate pair, or is not the only one.
    """
    names = list(names)
    repeated = [escaped(name) for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"Could not read {where}, which has several columns called "
            f"'{first_few(repeated)}', expected each name once. Rename or remove them."
        )
    wrong = [name for name in names if "\0" in name or any("\ud800" <= c <= "\udfff" for c in name)]
    if wrong:
        raise DataError(
            f"Could not read {where}, which has a column called '{escaped(wrong[0])}', expected "
            "whole characters other than NUL. Rename the column."
        )


def in_memory_dataset(table: pa.Table, features: Mapping[str, Any] | None = None) -> Dataset:
    """Return a table as a dataset in memory, without a cache on disk.

    Args:
        table: The columns.
        features: Their types; None derives them from the table.
    """
    info = None if features is None else DatasetInfo(features=Features(features))
    # Only cache files use the fingerprint, and computing the default hashes the whole table.
    return Dataset(table, info=info, fingerprint=uuid4().hex)
