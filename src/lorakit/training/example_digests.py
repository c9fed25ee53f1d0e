"""Detect whether a resumed run has the examples that it started with."""

from __future__ import annotations

import json
from pathlib import Path

from lorakit.data.dataset_digest import dataset_digest
from lorakit.training.tasks import Encoded

KEY = "examples"
"""Key of the digests in environment.json."""


def example_digests(encoded: Encoded) -> dict[str, str | None]:
    """Return a digest of the tokens and labels of each split, None for a split without examples."""
    splits = {"training": encoded.train, "validation": encoded.validation}
    return {name: None if one is None else dataset_digest(one) for name, one in splits.items()}


def changed_examples(environment_file: Path, now: dict[str, str | None]) -> str | None:
    """Return a note if the examples of a resumed run have changed, else None.

    Args:
        environment_file: The run's environment.json; if it cannot be read, there is no note.
        now: The current result of `example_digests`.
    """
    try:
        before = json.loads(environment_file.read_text(encoding="utf-8"))[KEY]
        changed = [name for name, digest in now.items() if before[name] != digest]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not changed:
        return None
    return (
        f"The {' and '.join(changed)} examples have changed since the run started: the data, the "
        "tokenizer or the chat template is different. The run continues with the changed examples, "
        "so its result is that of neither."
    )
