"""Whether a run that goes on sees the examples that it was begun with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from lorakit.training.tasks import Encoded

KEY = "examples"
"""Where environment.json holds the digests."""

_BATCH = 1000


def example_digests(encoded: Encoded) -> dict[str, str | None]:
    """Return a digest of the tokens and labels of each split; None where there is no such split."""
    splits = {"training": encoded.train, "validation": encoded.validation}
    return {name: None if one is None else _digest(one) for name, one in splits.items()}


def changed_examples(environment_file: Path, now: dict[str, str | None]) -> str | None:
    """Return what to tell about a run that goes on with other examples than it was begun with.

    Args:
        environment_file: The run's environment.json; one that cannot be read says nothing.
        now: What `example_digests` gives now.
    """
    try:
        before = json.loads(environment_file.read_text(encoding="utf-8"))[KEY]
        changed = [name for name, digest in now.items() if before[name] != digest]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not changed:
        return None
    return (
        f"The {' and '.join(changed)} examples have changed since the run was begun: the data, the "
        "tokenizer or the chat template is another one. The run goes on with the examples as they "
        "are now, so that its result is that of neither."
    )


def _digest(examples: Dataset) -> str:
    """Return a digest of columns of integers, or of lists of integers, whatever holds them."""
    digest = hashlib.sha256()
    for name in sorted(examples.column_names):
        digest.update(f"{name} {len(examples)} ".encode())
        tables: Any = examples.select_columns([name]).with_format("arrow").iter(_BATCH)
        for table in tables:
            for numbers in _numbers(table[name]):
                digest.update(numbers.tobytes())
    return digest.hexdigest()


def _numbers(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Return the lengths of the lists in a column and what is in them."""
    values: Any = column.combine_chunks()
    found = []
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        found.append(values.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64))
        values = values.flatten()
    return [*found, values.to_numpy(zero_copy_only=False).astype(np.int64)]
