"""The examples of a run: where they come from, how files are read, and which are held out."""

from lorakit.data.reading.columns import is_missing, require_columns, unused_note, without_bars
from lorakit.data.reading.positions import Place, listed
from lorakit.data.reading.sources import is_local
from lorakit.data.splits import Splits, load_splits

__all__ = [
    "Place",
    "Splits",
    "is_local",
    "is_missing",
    "listed",
    "load_splits",
    "require_columns",
    "unused_note",
    "without_bars",
]
