"""Encode the examples of a run split by split, in the way of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from datasets import Dataset

from lorakit.data import Place
from lorakit.data.stream import EncodedStream
from lorakit.data.table_cache import TableCache
from lorakit.data.tokenize_examples import cut_note
from lorakit.training.encoded import Encoded

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import DataConfig


@dataclass(frozen=True)
class EncodedSplit:
    """The encoded examples of a split."""

    examples: Dataset
    cut: int
    """Number of examples that were truncated."""
    notes: Sequence[str] = ()
    kept: np.ndarray | None = None
    """Index of each example among those given, if some may be left out."""

    def noting_left_out(self, given: Dataset, kind: str, why: str) -> EncodedSplit:
        """Return the split with a note on how many examples were left out, if any were.

        Args:
            given: The examples before they were encoded.
            kind: "training" or "validation".
            why: Why examples are left out, without a full stop.
        """
        lost = len(given) - len(self.examples)
        if not lost:
            return replace(self, kept=None)
        note = f"{lost} of {len(given)} {kind} examples were left out: {why}."
        return replace(self, notes=(*self.notes, note))


EncodeSplit: TypeAlias = "Callable[[Dataset, str, Place, TableCache], EncodedSplit]"
"""Encodes the examples of a split: its examples, "training" or "validation", their place, and
where the result of large data is kept."""
EncodePart: TypeAlias = "Callable[[Dataset, Place, TableCache], Dataset]"


def encode_splits(
    splits: Splits,
    data: DataConfig,
    max_length: int,
    encode: EncodeSplit,
    notes: Sequence[str],
    encode_part: EncodePart | None = None,
) -> Encoded:
    """Encode each split, and collect the notes on it.

    Args:
        splits: The examples of a run.
        data: The recipe's `data:` section.
        max_length: Number of tokens to which examples are truncated, for the notes.
        encode: Encodes the examples of a split.
        notes: Notes that precede those on the splits.
        encode_part: Encodes examples that a stream reads later, for tasks that can train on one.

    Returns: The encoded examples, without the settings of inference.
    """
    cache = TableCache.of(data)
    found: dict[str, EncodedSplit] = {}
    notes = list(notes)
    for examples, kind, where in splits.with_places(data):
        split = found[kind] = encode(examples, kind, where, cache)
        notes += [*cut_note(split.cut, len(examples), max_length, kind), *split.notes]
    notes += [note for note in cache.notes if note not in splits.notes]
    training, validation = found["training"], found.get("validation")
    stream = None
    if splits.stream is not None and encode_part is not None:
        keeps_nothing = TableCache(cache.directory, 0)
        stream = EncodedStream(
            splits.stream, lambda some, place: encode_part(some, place, keeps_nothing).to_list()
        )
    return Encoded(
        training.examples,
        None if validation is None else validation.examples,
        tuple(notes),
        cut_examples=training.cut,
        kept=training.kept,
        stream=stream,
    )
