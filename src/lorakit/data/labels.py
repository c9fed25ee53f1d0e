"""Class labels: read them from a column as names, check them and sort them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from lorakit.data.chunks import column_values
from lorakit.data.reading.columns import is_missing
from lorakit.data.reading.positions import Place, describe_examples
from lorakit.errors import DataError, first_few

_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
_NINES = str.maketrans("0123456789", "9876543210")
_MOST_LISTED = 10
_KINDS = "text, integers or true/false"
_MOST_FRACTIONS = 20
"""Number of distinct fractions that may still be classes (stars such as 3.5), not measurements."""


def label_names(dataset: Dataset, column: str, where: Place | str) -> list[str]:
    """Return the label of each example as a string, exactly as written.

    Args:
        dataset: The examples.
        column: The label column: texts, integers, booleans or a ClassLabel feature.
        where: Name of the examples, for errors.

    Raises:
        DataError: An example has no label, or a value that is not a class.
    """
    values: list[Any] = column_values(dataset, column)
    feature = dataset.features[column]
    known = feature.names if isinstance(feature, ClassLabel) else None
    empty = [
        number
        for number, value in enumerate(values)
        if is_missing(value) or (known is not None and class_name(known, value) is None)
    ]
    if empty:
        raise DataError(
            f"Labels are missing in {where}, column '{column}': "
            f"{describe_examples(empty, where)} {'has' if len(empty) == 1 else 'have'} none, "
            "expected one in each example. "
            "Label these examples or remove them."
        )
    if known is not None:
        return [known[value] for value in values]
    _require_classes(values, column, where)
    require_distinct([[value] for value in values], column, where)
    return [str(value) for value in values]


def _require_classes(values: list[Any], column: str, where: Place | str) -> None:
    """Refuse values that are not classes: measurements, lists of labels, mappings."""
    at = next((n for n, v in enumerate(values) if not isinstance(v, (str, int, bool))), None)
    if at is None and not are_measurements(values):
        return
    value = values[at or 0]
    if isinstance(value, list):
        what = (
            "Set data.problem_type=multi_label_classification if a text may have several labels, "
            "or regression if these are numbers to predict"
        )
    elif at is None or isinstance(value, float):
        what = "Set data.problem_type=regression if these are numbers to predict"
    else:
        what = "Name the right column in data.label"
    raise DataError(
        f"Not class labels in {where}, column '{column}': got {value!r} in "
        f"{describe_examples([at or 0], where)}, expected {_KINDS}. {what}."
    )


def are_measurements(values: Sequence[Any]) -> bool:
    """Return whether the texts are numbers with fractions and too many distinct values for classes.

    >>> are_measurements(["0.31", "0.7", "0.2"])
    True
    >>> are_measurements(["3.5", "4.0", "3.5", "4.0"]), are_measurements(["1e3", "007", "1e3"])
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
    """Refuse labels that look like the same class.

    Args:
        labels: The labels of each example.
        column: Their column.
        where: Name of the examples, for errors.

    Raises:
        DataError: Two labels differ only in surrounding spaces, in the encoding of accents, or in
            being a text, a number, or true and false for 1 and 0.
    """
    first: dict[tuple[str, bool], tuple[int, Any]] = {}
    for number, values in enumerate(labels):
        for value in values:
            first.setdefault((str(value), isinstance(value, str)), (number, value))
    seen: dict[str, tuple[int, Any]] = {}
    for (name, _), (number, value) in first.items():
        forms = [unicodedata.normalize("NFC", name).strip()]
        forms += [str(int(value)), name.lower()] if isinstance(value, bool) else []
        for form in forms:
            other_number, other = seen.setdefault(form, (number, value))
            if other is value:
                continue
            both = describe_examples(list(dict.fromkeys((other_number, number))), where)
            raise DataError(
                f"Two labels are alike in {where}, column '{column}': got {other!r} and {value!r} "
                f"in {both}, expected one spelling of each class. Remove spaces around labels, and "
                "write all as texts."
            )


def class_name(known: Sequence[str], value: Any) -> str | None:
    """Return the name of a ClassLabel's number, or None if the number is out of range."""
    is_number = isinstance(value, int) and 0 <= value < len(known)
    return known[value] if is_number else None


def label_notes(names: Iterable[str], column: str) -> list[str]:
    """Return a note about labels with surrounding spaces, if any: they are taken as written."""
    spaced = [repr(name) for name in names if name != name.strip()]
    if not spaced:
        return []
    return [
        f"Labels with spaces around them are taken as written ('{column}'): {first_few(spaced)}."
    ]


def sort_label_names(dataset: Dataset, column: str, where: Place | str) -> tuple[str, ...]:
    """Return the label names in the order of their ids.

    A ClassLabel feature sets the order; integers are sorted by value, texts alphabetically.
    """
    names = label_names(dataset, column, where)
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    return sort_labels(names)


def sort_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names sorted: by value if all are integers, else alphabetically.

    >>> sort_labels(["10", "9", "-1", "9"])
    ('-1', '9', '10')
    >>> sort_labels(["10", "9", "01"])
    ('01', '10', '9')
    """
    distinct = set(names)
    if all(_WHOLE_NUMBER.fullmatch(name) for name in distinct):
        return tuple(sorted(distinct, key=_integer_key))
    return tuple(sorted(distinct))


def _integer_key(name: str) -> tuple[bool, int, str]:
    """Return a key that sorts integers of any length by value, without parsing them."""
    digits = name.removeprefix("-")
    is_negative = digits != name
    if not is_negative:
        return (True, len(digits), digits)
    return (False, -len(digits), digits.translate(_NINES))


def require_seen(
    train: set[str], labels: Sequence[Sequence[str]], column: str, where: Place | str
) -> None:
    """Refuse labels that no training example has: the model could never predict them.

    Args:
        train: The labels of the training examples.
        labels: The labels of each example to check.
        column: The label column.
        where: Name of the examples, for errors.

    Raises:
        DataError: Names each such label and its examples.
    """
    unseen: dict[str, list[int]] = {}
    for number, names in enumerate(labels):
        for name in dict.fromkeys(names):
            if name not in train:
                unseen.setdefault(name, []).append(number)
    if unseen:
        found = [f"'{name}' in {describe_examples(at, where)}" for name, at in unseen.items()]
        known = first_few(sorted(train), _MOST_LISTED)
        raise DataError(
            f"Labels unseen in training in {where}, column '{column}': "
            f"{'; '.join(found[:_MOST_LISTED])}. Labels of the training examples: {known}. Correct "
            "these examples, remove them, or add such examples to the training data."
        )
