"""Digests of encoded examples, by which two data sets are the same."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

_BATCH = 1000


def dataset_digest(examples: Dataset) -> str:
    """Return a digest of columns of integers or lists of integers, independent of their storage."""
    digest = hashlib.sha256()
    for name in sorted(examples.column_names):
        digest.update(f"{name} {len(examples)} ".encode())
        tables: Any = examples.select_columns([name]).with_format("arrow").iter(_BATCH)
        for table in tables:
            for numbers in _numbers(table[name]):
                digest.update(numbers.tobytes())
    return digest.hexdigest()


def _numbers(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Return the lengths of the lists in a column, and their values."""
    values: Any = column.combine_chunks()
    found = []
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        found.append(values.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64))
        values = values.flatten()
    numbers = values.to_numpy(zero_copy_only=False)
    return [*found, numbers if numbers.dtype.kind == "f" else numbers.astype(np.int64)]
