"""Examples as they are read from a file: a table, and the line on which each begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features

from lorakit.errors import DataError, escaped

CHUNK_EXAMPLES = 20_000
"""Examples that are held as Python objects at once while a file is read."""


@dataclass(frozen=True)
class FileExamples:
    """What a file holds."""

    dataset: Dataset
    lines: np.ndarray | None = None
    """Line on which each example begins, counted from 1; None where the file has no lines."""
    notes: tuple[str, ...] = ()
    """How the file was understood, where it could have been understood otherwise."""


def require_names(names: Iterable[str], where: str) -> None:
    """Refuse names that no column can have.

    Args:
        names: The names of the columns.
        where: The recipe key and the file, for errors.

    Raises:
        DataError: A name has a NUL character or half a surrogate pair.
    """
    wrong = [name for name in names if "\0" in name or any("\ud800" <= c <= "\udfff" for c in name)]
    if wrong:
        raise DataError(
            f"Could not read {where}, which has a column called '{escaped(wrong[0])}', expected "
            "whole characters other than NUL. Rename the column."
        )


def dataset_of(table: pa.Table, features: Mapping[str, Any] | None = None) -> Dataset:
    """Return a table as a dataset in memory; nothing is cached on the disk.

    Args:
        table: The columns.
        features: Their types; None derives them from the table.
    """
    info = None if features is None else DatasetInfo(features=Features(features))
    # A fingerprint names cache files, of which there are none; the default hashes the whole table.
    return Dataset(table, info=info, fingerprint=uuid4().hex)
