"""Validation examples that are training examples too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from datasets import Dataset


def overlap_note(train: Dataset, validation: Dataset) -> list[str]:
    """Say how many validation examples are among the training examples, if any.

    Compares the columns that both have, so that a file given twice, a copy under another name and
    a few shared examples are all found.
    """
    columns = [name for name in train.column_names if name in validation.column_names]
    if not columns:
        return []
    known = set(_keys(train, columns))
    shared = sum(key in known for key in _keys(validation, columns))
    if not shared:
        return []
    count = "All" if shared == len(validation) else f"{shared} of"
    return [
        f"{count} {len(validation)} validation examples are training examples too, so that the "
        "metrics say little about new ones."
    ]


def _keys(examples: Dataset, columns: list[str]) -> Iterator[int]:
    for batch in examples.select_columns(columns).iter(batch_size=1000):
        values: Any = batch
        for row in zip(*(values[name] for name in columns), strict=True):
            yield hash(tuple(map(_hashable, row)))


def _hashable(value: Any) -> Any:
    return (
        json.dumps(value, sort_keys=True, default=str) if isinstance(value, (list, dict)) else value
    )
