"""What a text classifier learns besides one class for each text: several labels, or numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets

from lorakit.config import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ProblemType
from lorakit.data.chunks import column_values
from lorakit.data.labels import (
    are_measurements,
    class_name,
    label_notes,
    require_distinct,
    sort_label_names,
    sort_labels,
)
from lorakit.data.reading.positions import Place, describe_examples
from lorakit.errors import ConfigError, DataError, escaped, first_few

_MOST_CLASSES = 20
"""Number of distinct whole numbers that may be classes, stored with a fraction."""
_LABEL_KINDS = (str, int, bool)
_LARGE = 10.0
"""Mean or standard deviation of targets above which training is slow: a new head begins near 0."""


def problem_type_of(examples: Dataset, column: str, where: Place | str) -> ProblemType:
    """Return what the labels of texts are: one class, several labels, or numbers.

    Lists of numbers with a fraction are numbers, as are single ones; other lists are labels, and
    everything else is one class.

    Args:
        examples: The examples.
        column: The column of labels; if there is none, it is one class.
        where: Name of the examples, for errors.

    Raises:
        DataError: They are whole numbers stored with a fraction, which may be classes or numbers,
            or a 1 or 0 for each of several labels.
    """
    if column not in examples.column_names or isinstance(examples.features[column], ClassLabel):
        return SINGLE_LABEL
    values = [value for value in column_values(examples, column) if value is not None]
    _refuse_bits(values, column, where)
    if any(isinstance(value, list) for value in values):
        items = [item for value in values if isinstance(value, list) for item in value]
        are_numbers = any(isinstance(item, float) for item in items) or are_measurements(items)
        return REGRESSION if are_numbers else MULTI_LABEL
    fractions = [value for value in values if isinstance(value, float)]
    if not fractions:
        return REGRESSION if are_measurements(values) else SINGLE_LABEL
    whole = all(value.is_integer() for value in fractions)
    if whole and len(set(fractions)) <= _MOST_CLASSES:
        raise DataError(
            f"Labels can be read in two ways in {where}, column '{column}': got {fractions[0]!r}, "
            "expected whole numbers or texts for classes, or numbers with a fraction. Set "
            "data.problem_type=regression to predict the numbers, or write the classes as texts."
        )
    return REGRESSION


def describe_labels(examples: Dataset, column: str, where: Place | str) -> list[str]:
    """Return sentences on what the labels of texts are, after checking them as training does.

    Raises:
        DataError: They are no labels.
    """
    kind = problem_type_of(examples, column, where)
    if kind == REGRESSION:
        count = len(numbers_of(examples, column, where)[0])
        many = "a number" if count == 1 else f"a list of {count} numbers"
        return [f"Each label in '{escaped(column)}' is {many} to predict."]
    if kind == MULTI_LABEL:
        sets = label_sets(examples, column, where)
        names = known_labels(examples, column) or sort_labels(n for one in sets for n in one)
        said = f"The labels are lists, with {len(names)} different labels"
    else:
        names = sort_label_names(examples, column, where)
        said = f"The labels are {len(names)} classes"
    listed = f"{said} in '{escaped(column)}': {first_few(map(escaped, names), 5)}."
    return [listed, *label_notes(names, column)]


def label_sets(examples: Dataset, column: str, where: Place | str) -> list[list[str]]:
    """Return the labels of each example as strings, exactly as written, without repetitions.

    Args:
        examples: The examples.
        column: The column of lists of labels; an empty list has none.
        where: Name of the examples, for errors.

    Raises:
        DataError: A value is not a list of texts, integers or booleans, or labels look alike.
    """
    values: list[Any] = column_values(examples, column)
    known = known_labels(examples, column)
    if known is not None:
        values = [
            value if not isinstance(value, list) else [class_name(known, item) for item in value]
            for value in values
        ]
    else:
        _refuse_bits(values, column, where)
    wrong = [
        number
        for number, value in enumerate(values)
        if not isinstance(value, list) or not all(_is_label(item) for item in value)
    ]
    if wrong:
        raise DataError(
            f"Not lists of labels in {where}, column '{column}': got {values[wrong[0]]!r} in "
            f"{describe_examples(wrong, where)}, expected a list such as ['red', 'blue'], which "
            "may be empty. Repair these examples, or set data.label_separator if one text has "
            "several labels."
        )
    require_distinct(values, column, where)
    return [list(dict.fromkeys(map(str, value))) for value in values]


def _refuse_bits(values: Sequence[Any], column: str, where: Place | str) -> None:
    """Refuse lists of one length that say by 1 or 0 for each label whether a text has it.

    Raises:
        DataError: All lists are such, and one repeats a number, as no list of labels does.
    """
    lists = [value for value in values if isinstance(value, list)]
    repeating = [one for one in lists if len(set(map(str, one))) < len(one)]
    if not repeating or len({len(one) for one in lists}) > 1:
        return
    if all(isinstance(item, (int, float)) and item in (0, 1) for one in lists for item in one):
        raise DataError(
            f"Labels can be read in two ways in {where}, column '{column}': got {repeating[0]!r}, "
            "expected a list of the labels that a text has, such as ['red', 'blue']. Write the "
            "names of the labels instead of a 1 for each, or set data.problem_type=regression to "
            "predict the numbers."
        )


def known_labels(examples: Dataset, column: str) -> tuple[str, ...] | None:
    """Return the names of a column of lists of ClassLabels in their order, else None."""
    feature: Any = getattr(examples.features[column], "feature", None)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def _is_label(item: Any) -> bool:
    return isinstance(item, _LABEL_KINDS) and (not isinstance(item, str) or bool(item.strip()))


def numbers_of(examples: Dataset, column: str, where: Place | str) -> list[list[float]]:
    """Return the numbers of each example: one, or as many as its list has.

    Args:
        examples: The examples.
        column: The column of numbers, lists of numbers, or texts that are numbers.
        where: Name of the examples, for errors.

    Raises:
        DataError: A value is not a finite number, or lists have different lengths.
    """
    values: list[Any] = column_values(examples, column)
    read = [_numbers(value) for value in values]
    wrong = [number for number, found in enumerate(read) if found is None]
    if wrong:
        raise DataError(
            f"Not numbers in {where}, column '{column}': got {values[wrong[0]]!r} in "
            f"{describe_examples(wrong, where)}, expected a finite number in each example, or a "
            "list of them. Repair or remove these examples, or name another column in data.label."
        )
    targets = cast("list[list[float]]", read)
    size = len(targets[0]) if targets else 0
    uneven = [number for number, found in enumerate(targets) if len(found) != size]
    if uneven:
        raise DataError(
            f"Lists of numbers differ in {where}, column '{column}': got {len(targets[uneven[0]])} "
            f"numbers in {describe_examples(uneven, where)}, expected {size} as in the first "
            "example. Repair or remove these examples."
        )
    return targets


def _numbers(value: Any) -> list[float] | None:
    """Return the numbers of a value, or None if it is none."""
    items: list[Any] = value if isinstance(value, list) else [value]
    try:
        found = [float(item) for item in items if not isinstance(item, bool)]
    except (TypeError, ValueError, OverflowError):
        return None
    is_whole = len(found) == len(items) and bool(found)
    return found if is_whole and all(map(math.isfinite, found)) else None


def size_note(targets: Sequence[Sequence[float]], column: str) -> list[str]:
    """Return a note on targets far from 0, which a new head learns slowly, if they are."""
    flat = [number for numbers in targets for number in numbers]
    mean = sum(flat) / len(flat)
    spread = math.sqrt(sum((number - mean) ** 2 for number in flat) / len(flat))
    if abs(mean) <= _LARGE and spread <= _LARGE:
        return []
    return [
        f"The numbers of '{column}' have mean {mean:.4g} and standard deviation {spread:.4g}: a "
        "new head begins near 0 and learns numbers of this size slowly. Scale them to about 0 to 1."
    ]


def class_weights_of(
    given: str | Mapping[str, float] | None,
    names: Sequence[str],
    labels: Sequence[str],
    draws: Sequence[float] | None = None,
) -> tuple[float, ...] | None:
    """Return the weight of each class in the training loss.

    Args:
        given: The recipe's `data.class_weights`.
        names: The class of each training example.
        labels: Class names by id.
        draws: How often an epoch has each training example on average; None is once.

    Raises:
        ConfigError: It names a class that no example has.
    """
    if given is None:
        return None
    if isinstance(given, str):
        counts = {label: 0.0 for label in labels}
        once = [1.0] * len(names)
        for name, draw in zip(names, once if draws is None else draws, strict=True):
            counts[name] += draw
        present = sum(count > 0 for count in counts.values())
        drawn = sum(counts.values())
        return tuple(
            drawn / (present * counts[label]) if counts[label] else 1.0 for label in labels
        )
    unknown = [label for label in given if label not in labels]
    if unknown:
        raise ConfigError(
            f"No such class in data.class_weights: got {first_few(unknown)}, expected some of "
            f"{first_few(labels, 10)}. Correct the name."
        )
    return tuple(given.get(label, 1.0) for label in labels)


def split_texts(examples: Dataset, column: str, separator: str) -> Dataset:
    """Return examples whose texts in a column are lists of the parts between separators.

    Args:
        examples: The examples.
        column: The column; if it is missing or has no texts, the examples are returned unchanged.
        separator: The separator; spaces beside it are removed, and an empty text has no parts.
    """
    if column not in examples.column_names or not _holds_texts(examples, column):
        return examples
    lists = [
        [part.strip() for part in text.split(separator)] if text and text.strip() else []
        for text in column_values(examples, column)
    ]
    made = Dataset.from_dict({column: lists}, features=Features({column: List(Value("string"))}))
    order = examples.column_names
    return concatenate_datasets([examples.remove_columns(column), made], axis=1).select_columns(
        order
    )


def _holds_texts(examples: Dataset, column: str) -> bool:
    return getattr(examples.features[column], "dtype", None) in ("string", "large_string")
