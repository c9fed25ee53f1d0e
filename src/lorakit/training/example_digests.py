"""Detect whether a resumed run has the examples and labels that it started with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from lorakit.errors import CheckpointError
from lorakit.training.encoded import Encoded

KEY = "examples"
"""Key of the digests in environment.json."""

LABELS_KEY = "labels"
"""Key of the labels' names in environment.json, in the order of their ids."""

_STREAMED = "streamed files"
"""Key of the digest of what streamed files are: reading them all would take too long."""

_BATCH = 1000


def example_digests(encoded: Encoded) -> dict[str, str | None]:
    """Return a digest of the tokens and labels of each split, None for a split without examples.

    Of training examples that are streamed, it has the first, and sizes and times of the files.
    """
    splits = {"training": encoded.train, "validation": encoded.validation}
    digests = {name: None if one is None else dataset_digest(one) for name, one in splits.items()}
    if encoded.stream is not None:
        state = json.dumps(encoded.stream.stream.files_state())
        digests[_STREAMED] = hashlib.sha256(state.encode()).hexdigest()
    return digests


def note_changed_examples(environment_file: Path, now: dict[str, str | None]) -> str | None:
    """Return a note if the examples of a resumed run have changed, else None.

    Args:
        environment_file: The run's environment.json; if it cannot be read, there is no note.
        now: The current result of `example_digests`.
    """
    try:
        before = json.loads(environment_file.read_text(encoding="utf-8"))[KEY]
        before = {_STREAMED: now.get(_STREAMED), **before}  # runs of earlier versions lack it
        changed = [name for name, digest in now.items() if before[name] != digest]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not changed:
        return None
    if changed == [_STREAMED]:
        return (
            "The streamed files have another size or time of change than when the run started. If "
            "their content has changed, the result of the run is that of neither."
        )
    changed = [name for name in changed if name != _STREAMED]
    return (
        f"The {' and '.join(changed)} examples have changed since the run started: the data, the "
        "tokenizer or the chat template is different. The run continues with the changed examples, "
        "so its result is that of neither."
    )


def require_same_labels(environment_file: Path, now: Sequence[str] | None) -> None:
    """Refuse a resumed run whose labels are others: its head has an output for each of the former.

    Args:
        environment_file: The run's environment.json; if it names no labels, nothing is refused.
        now: The labels by id; None if the task has none.

    Raises:
        CheckpointError: Shows the first that differs.
    """
    try:
        before = json.loads(environment_file.read_text(encoding="utf-8"))[LABELS_KEY]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before is None or now is None or list(now) == before:
        return
    pairs = enumerate(zip_longest(now, before))
    number, (got, expected) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
    raise CheckpointError(
        f"Cannot resume {environment_file.parent}: the labels have changed since the run started, "
        f"got {got!r} as label {number}, expected {expected!r}. Restore the data, or train under "
        "another `output`."
    )


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
