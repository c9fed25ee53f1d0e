"""Join the examples of several files or sources, whose columns must agree."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Json, List, concatenate_datasets

from lorakit.data.reading.json_columns import WrittenJson, json_array
from lorakit.data.reading.table import FileExamples, in_memory_dataset
from lorakit.errors import DataError, MissingFileError, escaped, first_few

_COLUMNS_SHOWN = 25


def expand_glob(pattern: str, key: str) -> list[str]:
    """Return the files that a pattern matches, sorted by name.

    Args:
        pattern: Such as "chats/*.jsonl"; "**" matches folders at any depth.
        key: The recipe key that has it.

    Raises:
        MissingFileError: No file matches.
    """
    found = glob.iglob(str(Path(pattern).expanduser()), recursive=True)
    files = sorted(name for name in found if Path(name).is_file())
    if not files:
        raise MissingFileError(
            f"No data in {key}: got the pattern '{escaped(pattern)}', which matches no file, "
            "expected one that matches files. Check the path; it is relative to the current "
            "directory."
        )
    return files


def join_examples(parts: Sequence[FileExamples], names: Sequence[str], what: str) -> FileExamples:
    """Return the examples of several files or sources, one after the other.

    Args:
        parts: The examples of each.
        names: The name of each, for errors.
        what: What they are, such as "Files" or "Sources".

    Raises:
        DataError: Their columns differ, in names or in types.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0].dataset
    for part, name in zip(parts[1:], names[1:], strict=True):
        if set(part.dataset.column_names) != set(first.column_names):
            raise DataError(
                f"{what} have different columns: got {_columns(part.dataset)} in '{name}', "
                f"expected {_columns(first)} as in '{names[0]}'. Choose and name the columns to "
                "take in `columns` of each source, such as {text: review}."
            )
    datasets = _with_equal_types([part.dataset for part in parts], names, what)
    files = tuple(
        file for part, name in zip(parts, names, strict=True) for file in _files(part, name)
    )
    starts = np.cumsum([0, *(len(_files(part, "")) for part in parts)])
    zeros = [np.zeros(len(part.dataset), dtype=np.int64) for part in parts]
    return FileExamples(
        concatenate_datasets(datasets),
        np.concatenate(
            [
                none if part.lines is None else part.lines
                for part, none in zip(parts, zeros, strict=True)
            ]
        ),
        tuple(note for part in parts for note in part.notes),
        files,
        np.concatenate(
            [np.arange(len(p.dataset)) if p.numbers is None else p.numbers for p in parts]
        ),
        np.concatenate(
            [
                start + (none if part.file_of is None else part.file_of)
                for part, none, start in zip(parts, zeros, starts, strict=False)
            ]
        ),
    )


def _files(part: FileExamples, name: str) -> tuple[str, ...]:
    return part.files or (name,)


def _columns(dataset: Dataset) -> str:
    return first_few(map(escaped, dataset.column_names), _COLUMNS_SHOWN)


def _with_equal_types(
    datasets: Sequence[Dataset], names: Sequence[str], what: str
) -> list[Dataset]:
    """Return datasets whose columns have the types and the order of the first."""
    made = list(datasets)
    for column in datasets[0].column_names:
        kinds = [one.features[column] for one in made]
        different = next((at for at, kind in enumerate(kinds) if kind != kinds[0]), None)
        if different is None:
            continue
        if any(isinstance(kind, (Json, List, dict, list)) for kind in kinds):
            made = [_as_written(one, column) for one in made]
            continue
        raise DataError(
            f"{what} have columns of different types: got {_kind(kinds[different])} in the column "
            f"'{escaped(column)}' of '{names[different]}', expected {_kind(kinds[0])} as in "
            f"'{names[0]}'. Write them alike."
        )
    return [one.select_columns(datasets[0].column_names) for one in made]


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def _as_written(dataset: Dataset, column: str) -> Dataset:
    """Return a dataset in which a column keeps each value as JSON, as in json files."""
    if isinstance(dataset.features[column], WrittenJson):
        return dataset
    written = pa.table({column: json_array(dataset[column][:])})
    made = in_memory_dataset(written, {column: WrittenJson()})
    return concatenate_datasets([dataset.remove_columns(column), made], axis=1)
