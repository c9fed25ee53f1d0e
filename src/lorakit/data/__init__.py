"""The examples of a run: reading files, splitting, formatting and tokenizing."""

from lorakit.data.reading.columns import (
    hiding_progress_bars,
    is_missing,
    require_columns,
    unused_note,
)
from lorakit.data.reading.positions import Place, describe_examples
from lorakit.data.splits import Splits, load_splits

__all__ = [
    "Place",
    "Splits",
    "describe_examples",
    "hiding_progress_bars",
    "is_missing",
    "load_splits",
    "require_columns",
    "unused_note",
]
