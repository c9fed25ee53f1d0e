"""Class labels: from whatever a column holds to names, and from names to ids."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from lorakit.data import Place, is_missing, listed
from lorakit.errors import DataError, first_few

_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
_NINES = str.maketrans("0123456789", "9876543210")
_MOST_LISTED = 10
_KINDS = "text, integers or true/false"
_MOST_FRACTIONS = 20
"""Different numbers with a fraction that may be classes (stars such as 3.5); more are measured."""


def names_of(dataset: Dataset, column: str, where: Place | str) -> list[str]:
    """Return the label of each example as a name: a text as it is written.

    Args:
        dataset: The examples.
        column: The label column: texts, integers, booleans or a ClassLabel feature.
        where: What to call the examples in the error.

    Raises:
        DataError: An example has no label, or one that is no class.
    """
    values: list[Any] = dataset[column][:]
    feature = dataset.features[column]
    known = feature.names if isinstance(feature, ClassLabel) else None
    empty = [
        row
        for row, value in enumerate(values)
        if is_missing(value) or (known is not None and named(known, value) is None)
    ]
    if empty:
        raise DataError(
            f"Labels are missing in {where}, column '{column}': {listed(empty, where)} of "
            f"{len(values)} {'has' if len(empty) == 1 else 'have'} none, expected one in each "
            "example. Label these examples or remove them."
        )
    if known is not None:
        return [known[value] for value in values]
    _require_classes(values, column, where)
    require_distinct([[value] for value in values], column, where)
    return [str(value) for value in values]


def _require_classes(values: list[Any], column: str, where: Place | str) -> None:
    """Refuse what is no class: numbers that were measured, several labels at once, mappings."""
    at = next((r for r, v in enumerate(values) if not isinstance(v, (str, int, bool))), None)
    if at is None and not _are_measured(values):
        return
    value = values[at or 0]
    if isinstance(value, list):
        what = "lists, that is several labels for one text. Multi-label classification"
    elif at is None or isinstance(value, float):
        what = "numbers with a fraction. Regression"
    else:
        raise DataError(
            f"These are no class labels in {where}, column '{column}': got {value!r} in "
            f"{listed([at], where)}, expected {_KINDS}. Name the right column in data.label."
        )
    raise DataError(
        f"These are no class labels in {where}, column '{column}': got {value!r} in "
        f"{listed([at or 0], where)}, expected {_KINDS}. Such labels are {what} is not built yet; "
        "name a column of classes in data.label, or make classes of these."
    )


def _are_measured(values: list[Any]) -> bool:
    """Return whether texts are numbers of so many values, some with a fraction, as no classes are.

    >>> _are_measured(["0.31", "0.7", "0.2"])
    True
    >>> _are_measured(["3.5", "4.0", "3.5", "4.0"]), _are_measured(["1e3", "007", "1e3"])
    (False, False)
    """
    distinct = {value for value in values if isinstance(value, str)}
    try:
        numbers = [float(value) for value in distinct]
    except ValueError:
        return False
    has_fractions = any(math.isfinite(n) and n != math.floor(n) for n in numbers)
    return has_fractions and len(distinct) > min(_MOST_FRACTIONS, len(values) / 2)


def require_distinct(labels: Iterable[Sequence[Any]], column: str, where: Place | str) -> None:
    """Refuse labels that a reader would take for one class, or that would become one.

    Args:
        labels: The labels of each example.
        column: Their column.
        where: What to call the examples in the error.

    Raises:
        DataError: Two labels differ only in the spaces around them, in how accents are stored, or
            in being text or number.
    """
    first: dict[tuple[str, bool], tuple[int, Any]] = {}
    for row, values in enumerate(labels):
        for value in values:
            first.setdefault((str(value), isinstance(value, str)), (row, value))
    seen: dict[str, tuple[int, Any]] = {}
    for (name, _), (row, value) in first.items():
        plain = unicodedata.normalize("NFC", name).strip()
        other_row, other = seen.setdefault(plain, (row, value))
        if other is not value:
            raise DataError(
                f"Two labels are alike in {where}, column '{column}': got {other!r} and {value!r} "
                f"in {listed(list(dict.fromkeys((other_row, row))), where)}, expected each class "
                "written in one way. Remove spaces around labels, and write all as texts."
            )


def named(known: Sequence[str], value: Any) -> str | None:
    """Return the name of a ClassLabel's number, or None where it is none of its numbers."""
    is_number = isinstance(value, int) and 0 <= value < len(known)
    return known[value] if is_number else None


def label_notes(names: Iterable[str], column: str) -> list[str]:
    """Say which labels have spaces around them, if any: they are taken as written."""
    spaced = [repr(name) for name in names if name != name.strip()]
    if not spaced:
        return []
    return [
        f"Labels with spaces around them are taken as written ('{column}'): {first_few(spaced)}."
    ]


def sorted_names(dataset: Dataset, column: str, where: Place | str) -> tuple[str, ...]:
    """Return the label names in the order of their ids.

    A ClassLabel feature sets the order; integers are sorted as numbers, texts as texts.
    """
    names = names_of(dataset, column, where)
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    return in_order(names)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return different names sorted: integers as numbers where all are, else as texts.

    >>> in_order(["10", "9", "-1", "9"])
    ('-1', '9', '10')
    >>> in_order(["10", "9", "01"])
    ('01', '10', '9')
    """
    distinct = set(names)
    if all(_WHOLE_NUMBER.fullmatch(name) for name in distinct):
        return tuple(sorted(distinct, key=_size_of))
    return tuple(sorted(distinct))


def _size_of(name: str) -> tuple[bool, int, str]:
    """Return a key that sorts whole numbers of any length by size, without making numbers."""
    digits = name.removeprefix("-")
    is_negative = digits != name
    if not is_negative:
        return (True, len(digits), digits)
    return (False, -len(digits), digits.translate(_NINES))


def require_seen(
    train: set[str], rows: Sequence[Sequence[str]], column: str, where: Place | str
) -> None:
    """Refuse labels that no training example has: the model could never give them.

    Args:
        train: The labels of the training examples.
        rows: The labels of each example to check.
        column: The label column.
        where: What to call the examples in the error.

    Raises:
        DataError: Names each such label and its examples.
    """
    unseen: dict[str, list[int]] = {}
    for row, names in enumerate(rows):
        for name in dict.fromkeys(names):
            if name not in train:
                unseen.setdefault(name, []).append(row)
    if unseen:
        found = [f"'{name}' in {listed(at, where)}" for name, at in unseen.items()]
        known = first_few(sorted(train), _MOST_LISTED)
        raise DataError(
            f"Labels unseen in training in {where}, column '{column}': "
            f"{'; '.join(found[:_MOST_LISTED])}. Labels of the training examples: {known}. Correct "
            "these examples, remove them, or add such examples to the training data."
        )
