"""Read the rows of a dataset: files, saved datasets and the Hugging Face hub; take splits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import (
    Dataset,
    DatasetDict,
    disable_progress_bars,
    enable_progress_bars,
    is_progress_bar_enabled,
    load_dataset,
    load_from_disk,
)

from lorakit.errors import DataError, MissingFileError, did_you_mean, first_few

if TYPE_CHECKING:
    from lorakit.training.recipe import DataConfig

READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""The file endings that can be read, and the reader of the datasets library for each."""


@dataclass(frozen=True)
class Splits:
    """The rows of a run, before any tokenizer has seen them."""

    train: Dataset
    validation: Dataset | None
    notes: tuple[str, ...] = ()
    """What was done to the data, one sentence each, such as a validation split that was taken."""


def load_splits(data: DataConfig, seed: int) -> Splits:
    """Read the training and validation rows that a recipe names.

    Where no validation set is named, a split called "validation" is used; where there is none,
    `data.validation_fraction` of the training rows are taken, the same rows for the same seed, and
    with the labels in equal shares where the rows have a label column.

    Args:
        data: The recipe's `data:` section.
        seed: Decides which rows are taken for validation and which are kept under a row limit.

    Raises:
        MissingFileError: A file, folder or hub dataset is not there or cannot be reached.
        DataError: A file cannot be read, a split is missing or empty.
    """
    notes: list[str] = []
    with without_bars():
        source = _read(data.train, data.subset, "data.train")
        train = _pick(source, data.train_split, data.train, "data.train_split")
        validation = _validation(data, source)
    where = f"'{data.train}' (data.train)"
    _refuse_empty(train, where)
    if validation is not None:
        _refuse_empty(validation, f"'{data.validation or data.train}' (validation split)")
    elif data.validation_fraction > 0:
        train, validation, note = _take(train, data.validation_fraction, seed, data.label, where)
        notes.append(note)
    train = _limit(train, data.max_train_rows, seed, "train", notes)
    if validation is not None:
        validation = _limit(validation, data.max_validation_rows, seed, "validation", notes)
    return Splits(train, validation, tuple(notes))


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep the datasets library from drawing a progress bar for each step of its work."""
    if not is_progress_bar_enabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def require_columns(dataset: Dataset, columns: Mapping[str, str], where: str) -> None:
    """Check that a dataset has the columns a recipe names.

    Args:
        dataset: The rows.
        columns: The wanted column by the recipe key that names it.
        where: What to call the rows in the error.

    Raises:
        DataError: Lists every missing column, the columns there are and the nearest one.
    """
    there = dataset.column_names
    missing = {key: column for key, column in columns.items() if column not in there}
    if missing:
        problems = [
            f"{key}: got '{column}', expected a column of the rows.{did_you_mean(column, there)}"
            for key, column in missing.items()
        ]
        raise DataError(
            f"Columns are missing in {where}: {' '.join(problems)} Columns there are: "
            f"{', '.join(there)}. Name them in the recipe, as in {next(iter(missing))}={there[0]}."
        )


def row_list(rows: Sequence[int], most: int = 5) -> str:
    """Return row numbers, counted from 1, for an error message.

    >>> row_list([0, 4])
    'rows 1, 5'
    >>> row_list([2])
    'row 3'
    >>> row_list(list(range(9)), most=3)
    'rows 1, 2, 3 and 6 more'
    """
    shown = first_few((str(row + 1) for row in rows), most)
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}"


def _read(name: str, subset: str | None, key: str) -> Dataset | DatasetDict:
    path = Path(name).expanduser()
    if path.is_dir():
        return _read_saved(path, key)
    if path.is_file():
        return _read_file(path, key)
    if _looks_like_a_path(name):
        raise MissingFileError(_missing(path, key))
    return _read_hub(name, subset, key)


def is_local(name: str) -> bool:
    """Return whether a recipe names data that is here, or that ought to be, not on the hub."""
    return Path(name).expanduser().exists() or _looks_like_a_path(name)


def _looks_like_a_path(name: str) -> bool:
    parts = Path(name).parts
    return (
        name.startswith((".", "~", os.sep))
        or Path(name).suffix.lower() in READERS
        or len(parts) > 2
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )


def _missing(path: Path, key: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        return (
            f"No data in {key}: got '{path}', but there is no folder '{folder}'. "
            "Check the path; it is taken from the current directory."
        )
    names = sorted(entry.name for entry in folder.iterdir())
    near = get_close_matches(path.name, names, n=3, cutoff=0.4)
    there = near or [name for name in names if Path(name).suffix.lower() in READERS][:5]
    hint = f" Near it in '{folder}': {', '.join(there)}." if there else ""
    return (
        f"No data in {key}: got '{path}', expected a file or folder that is there.{hint} "
        "Check the path; it is taken from the current directory."
    )


def _read_saved(path: Path, key: str) -> Dataset | DatasetDict:
    if not ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        files = sorted(e.name for e in path.iterdir() if e.suffix.lower() in READERS)
        hint = f" Files in it that can be read: {', '.join(files[:5])}." if files else ""
        raise DataError(
            f"Could not read {key}: got the folder '{path}', expected one written by "
            f"Dataset.save_to_disk, or a file.{hint} Name one file in {key}."
        )
    if not any(path.rglob("*.arrow")):  # what the library writes of a dataset without rows
        raise DataError(_empty(f"'{path}' ({key})"))
    try:
        return load_from_disk(path)
    except Exception as error:  # pyarrow and datasets raise many kinds for a damaged folder
        raise DataError(_unreadable(path, key, error)) from error


def _read_file(path: Path, key: str) -> Dataset:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"Could not read {key}: got '{path}' with the ending '{path.suffix}', expected one of "
            f"{', '.join(READERS)}. Convert the file, or rename it to what it holds."
        )
    if not path.stat().st_size:
        raise DataError(_empty(f"'{path}' ({key})"))
    # Only an empty cell is a missing value: "None" and "NA" are texts and labels like any other.
    options = {"keep_default_na": False, "na_values": [""]} if reader == "csv" else {}
    try:
        return load_dataset(reader, data_files=str(path), split="train", **options)
    except Exception as error:  # each reader raises kinds of its own
        if "corresponds to no data" in str(error) or isinstance(error, StopIteration):
            raise DataError(_empty(f"'{path}' ({key})")) from error
        raise DataError(_unreadable(path, key, error)) from error


def _unreadable(path: Path, key: str, error: Exception) -> str:
    cause = error.__cause__ or error
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return (
        f"Could not read {key}: got '{path}', which is not whole or not what its ending says "
        f"({reason.rstrip('.')}). Repair or rewrite the file."
    )


def _read_hub(name: str, subset: str | None, key: str) -> Dataset | DatasetDict:
    label = f"'{name}'" + (f" (data.subset '{subset}')" if subset else "")
    try:
        return load_dataset(name, subset)
    except ValueError as error:
        raise DataError(
            f"Could not load {label} in {key} from the Hugging Face hub: "
            f"{str(error).strip().splitlines()[0].rstrip('.')}. Set data.subset to one of its "
            "configurations."
        ) from error
    except Exception as error:  # network, hub and cache errors share no class
        reason = str(error).strip().splitlines()[0].rstrip(".") or type(error).__name__
        raise MissingFileError(
            f"Could not load {key}: got {label}, which is no file or folder here, and asking the "
            f"Hugging Face hub for a dataset of that name failed ({reason}). Check the name and "
            "the network, or name a local csv, json, jsonl or parquet file or a saved dataset."
        ) from error


def _pick(source: Dataset | DatasetDict, split: str, name: str, key: str) -> Dataset:
    if isinstance(source, Dataset):
        return source
    if split not in source:
        raise DataError(
            f"No such split in {key}: got '{split}', expected one of '{name}': "
            f"{', '.join(map(str, source))}.{did_you_mean(split, map(str, source))} "
            f"Set {key} to one of them."
        )
    return source[split]


def _validation(data: DataConfig, source: Dataset | DatasetDict) -> Dataset | None:
    """Return the validation rows that are named or that the data comes with."""
    key = "data.validation_split"
    if data.validation is not None:
        other = _read(data.validation, data.subset, "data.validation")
        if isinstance(other, DatasetDict) and data.validation_split is None and len(other) == 1:
            return next(iter(other.values()))
        return _pick(other, data.validation_split or "validation", data.validation, key)
    if data.validation_split is not None:
        if isinstance(source, Dataset):
            raise DataError(
                f"No such split in {key}: got '{data.validation_split}', but '{data.train}' is one "
                "table without splits. Name the validation file in data.validation, or leave "
                f"{key} out and rows are taken by data.validation_fraction."
            )
        return _pick(source, data.validation_split, data.train, key)
    if (
        isinstance(source, DatasetDict)
        and "validation" in source
        and data.train_split != "validation"
    ):
        return source["validation"]
    return None


def _empty(where: str) -> str:
    return f"No rows in {where}: got 0, expected at least 1. Check that the right file is named."


def _refuse_empty(dataset: Dataset, where: str) -> None:
    if not len(dataset):
        raise DataError(_empty(where))


def _take(
    train: Dataset, fraction: float, seed: int, label: str, where: str
) -> tuple[Dataset, Dataset, str]:
    """Take a share of the training rows for validation."""
    rows = len(train)
    if rows < 2:
        raise DataError(
            f"No validation rows can be taken from {where}: got {rows} row, expected at least 2. "
            "Add rows, name data.validation, or set data.validation_fraction=0."
        )
    count = min(max(1, round(fraction * rows)), rows - 1)
    values = train[label][:] if label in train.column_names else []
    by_label = bool(values) and all(isinstance(v, (str, int, bool)) for v in values)
    generator = np.random.default_rng(seed)
    if by_label:
        taken = _shares(np.array([str(v) for v in values]), count, generator)
    else:
        taken = generator.permutation(rows)[:count]
    kept = np.setdiff1d(np.arange(rows), taken)
    share = f", in equal shares of '{label}'" if by_label else ""
    note = f"{len(taken)} of {rows} training rows were taken for validation (seed {seed}{share})."
    return train.select(kept), train.select(np.sort(taken)), note


def _shares(labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Choose `count` rows so that each label has its share and keeps a row for training.

    Each label gets the whole part of its share; the largest remainders get the rest.
    """
    names, label_ids, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    exact = sizes * count / len(labels)
    take = np.floor(exact).astype(int)
    for index in np.argsort(take - exact, kind="stable"):
        if take.sum() < count and take[index] < sizes[index] - 1:
            take[index] += 1
    chosen = [
        generator.permutation(np.flatnonzero(label_ids == index))[: take[index]]
        for index in range(len(names))
    ]
    taken = np.concatenate(chosen)
    return taken if len(taken) else generator.permutation(len(labels))[:count]


def _limit(dataset: Dataset, most: int | None, seed: int, kind: str, notes: list[str]) -> Dataset:
    """Keep a random choice of rows, in their order: a file may be sorted by label."""
    if most is None or len(dataset) <= most:
        return dataset
    kept = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:most])
    notes.append(f"{most} of {len(dataset)} {kind} rows were kept (data.max_{kind}_rows).")
    return dataset.select(kept)


def is_missing(value: Any) -> bool:
    """Return whether a cell holds nothing: None, NaN, or a text without a visible character."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)
