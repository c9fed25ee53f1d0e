"""Check the columns of a dataset and find missing values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from datasets import (
    Dataset,
    disable_progress_bars,
    enable_progress_bars,
    is_progress_bar_enabled,
)

from lorakit.data.reading.positions import Place
from lorakit.errors import DataError, did_you_mean, escaped, first_few

_COLUMNS_SHOWN = 25


@contextmanager
def hiding_progress_bars() -> Iterator[None]:
    """Hide the progress bars of the datasets library inside the block."""
    if not is_progress_bar_enabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def require_columns(dataset: Dataset, columns: Mapping[str, str], where: Place | str) -> None:
    """Check that a dataset has the columns a recipe names.

    Args:
        dataset: The examples.
        columns: The wanted column by the recipe key that names it.
        where: Name of the examples, for errors.

    Raises:
        DataError: Lists every missing column with the nearest one, and the columns of the data.
    """
    there = dataset.column_names
    missing = {key: column for key, column in columns.items() if column not in there}
    if missing:
        problems = [
            f"{key}: got '{column}', expected a column of the data.{did_you_mean(column, there)}"
            for key, column in missing.items()
        ]
        what_to_do = (
            f"Name them in the recipe, as in {next(iter(missing))}="
            f"{there[0] if there else 'COLUMN'}."
        )
        if {"chosen", "rejected"} <= set(there):
            what_to_do = (
                "These are preferences: the lines `task: CAUSAL_LM` and `objective: {type: dpo}` "
                "train on them, or `task: SEQ_CLS` and `objective: {type: reward}`."
            )
        raise DataError(
            f"Columns are missing in {where}: {' '.join(problems)} Columns of the data: "
            f"{first_few(there, _COLUMNS_SHOWN)}. {what_to_do}"
        )


def take_columns(
    dataset: Dataset, columns: Mapping[str, str] | None, key: str, name: str
) -> Dataset:
    """Return a dataset with the columns that a source takes, under their new names.

    Args:
        dataset: The examples.
        columns: Columns by their new names; None takes all as they are.
        key: The recipe key of the source.
        name: Name of the source, for errors.

    Raises:
        DataError: A column is missing; see `require_columns`.
    """
    if columns is None:
        return dataset
    wanted = {f"{key}.columns.{new}": old for new, old in columns.items()}
    require_columns(dataset, wanted, f"'{name}'")
    taken = dataset.select_columns(list(columns.values()))
    return taken.rename_columns({old: new for new, old in columns.items()})


def unused_note(dataset: Dataset, used: Iterable[str]) -> list[str]:
    """Return a note on unused columns, if any: the user may have meant one of them."""
    known = set(used)
    unused = [escaped(name) for name in dataset.column_names if name not in known]
    return [f"Columns that are not used: {first_few(unused, 10)}."] if unused else []


def first_value(dataset: Dataset, column: str) -> Any:
    """Return the first value of a column that is not None; None if there is no such column."""
    if column not in dataset.column_names:
        return None
    return next((value for value in dataset[column] if value is not None), None)


def is_missing(value: Any) -> bool:
    """Return whether a value is missing: None, NaN, or a text without a visible character."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)
