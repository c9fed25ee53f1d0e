"""Find validation examples that are also training examples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from datasets import Dataset


def overlap_note(
    train: Dataset, validation: Dataset, used: Iterable[str] = (), *, is_held_out: bool = False
) -> list[str]:
    """Return a note on how many validation examples are also training examples, if any.

    Compares columns that both splits have, so it finds a file given twice, a copy under another
    name, and single shared examples: those that are used, whatever the others say, or all.

    Args:
        train: Training examples.
        validation: Validation examples.
        used: Columns that a model may learn from.
        is_held_out: Whether both are from the same data, which has an example more than once then.
    """
    common = [name for name in train.column_names if name in validation.column_names]
    columns = [name for name in common if name in set(used)] or common
    if not columns:
        return []
    known = set(_keys(train, columns))
    shared = sum(key in known for key in _keys(validation, columns))
    if not shared:
        return []
    count = "All" if shared == len(validation) else f"{shared} of"
    cause = ", as the data repeats them" if is_held_out else ""
    return [
        f"{count} {len(validation)} validation examples are also training examples{cause}, so the "
        "metrics say little about new ones."
    ]


def _keys(examples: Dataset, columns: list[str]) -> Iterator[int]:
    for batch in examples.select_columns(columns).iter(batch_size=1000):
        values: Any = batch
        for example in zip(*(values[name] for name in columns), strict=True):
            yield hash(tuple(map(_hashable, example)))


def _hashable(value: Any) -> Any:
    return (
        json.dumps(value, sort_keys=True, default=str) if isinstance(value, (list, dict)) else value
    )
