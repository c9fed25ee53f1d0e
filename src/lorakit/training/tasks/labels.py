"""Class labels: from whatever a column holds to names, and from names to ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from lorakit.errors import DataError
from lorakit.training.data import is_missing, row_list

_KINDS = "text, integers or true/false"


def names_of(dataset: Dataset, column: str, where: str) -> list[str]:
    """Return the label of each row as a name.

    Args:
        dataset: The rows.
        column: The label column: texts, integers, booleans or a ClassLabel feature.
        where: What to call the rows in the error.

    Raises:
        DataError: A row has no label, or one that is no class.
    """
    values: list[Any] = dataset[column][:]
    feature = dataset.features[column]
    known = feature.names if isinstance(feature, ClassLabel) else None
    empty = [r for r, v in enumerate(values) if is_missing(v) or (known is not None and v == -1)]
    if empty:
        raise DataError(
            f"Labels are missing in {where}, column '{column}': {row_list(empty)} of "
            f"{len(values)} have none, expected one in each row. Label these rows or remove them."
        )
    kinds = {type(value) for value in values}
    if not kinds <= {str, int, bool} or len(kinds) > 1:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(
            f"These are no class labels in {where}, column '{column}': got {found} such as "
            f"{values[0]!r}, expected one kind of {_KINDS}. Name the right column in data.label."
        )
    return [known[value] if known is not None else str(value) for value in values]


def sorted_names(dataset: Dataset, column: str, where: str) -> tuple[str, ...]:
    """Return the label names in the order of their ids.

    A ClassLabel feature sets the order; integers are sorted as numbers, texts as texts.
    """
    names = names_of(dataset, column, where)
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    values: list[Any] = dataset[column][:]
    return tuple(str(value) for value in sorted(dict(zip(values, names, strict=True))))


def require_seen(train: set[str], rows: Sequence[Sequence[str]], column: str, where: str) -> None:
    """Refuse labels that no training row has: the model could never give them.

    Args:
        train: The labels of the training rows.
        rows: The labels of each row to check.
        column: The label column.
        where: What to call the rows in the error.

    Raises:
        DataError: Names each such label and its rows.
    """
    unseen: dict[str, list[int]] = {}
    for row, names in enumerate(rows):
        for name in dict.fromkeys(names):
            if name not in train:
                unseen.setdefault(name, []).append(row)
    if unseen:
        listed = "; ".join(f"'{name}' in {row_list(at)}" for name, at in unseen.items())
        raise DataError(
            f"Labels unseen in training in {where}, column '{column}': {listed}. Labels of the "
            f"training rows: {', '.join(sorted(train))}. Correct these rows, remove them, or add "
            "such rows to the training data."
        )
