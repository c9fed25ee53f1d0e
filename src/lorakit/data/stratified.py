"""Choose examples at random so that training keeps every label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from lorakit.data.chunks import column_values
from lorakit.data.labels import are_measurements

_LABEL_TYPES = (str, int, bool)


@dataclass(frozen=True)
class Labels:
    """The labels of each example."""

    sets: list[frozenset[str]]
    is_single: bool
    """Whether each example has one label, rather than the tags of its words."""


def read_labels(examples: Dataset, column: str | None) -> Labels | None:
    """Return the labels of each example, or None if the column does not hold classes.

    Args:
        examples: The examples.
        column: The column of labels, or of lists of tags.
    """
    if column is None or column not in examples.column_names:
        return None
    values: list[Any] = column_values(examples, column)
    if values and all(isinstance(value, _LABEL_TYPES) for value in values):
        if are_measurements(values):
            return None
        return Labels([frozenset((str(value),)) for value in values], is_single=True)
    if values and all(isinstance(value, list) for value in values):
        items = [item for value in values for item in value]
        if any(isinstance(item, float) for item in items) or are_measurements(items):
            return None
        return Labels([frozenset(map(str, value)) for value in values], is_single=False)
    return None


def hold_out(labels: Labels, count: int, generator: np.random.Generator) -> np.ndarray:
    """Choose up to `count` examples without taking the last example of a label.

    Single labels are stratified. The time is linear in the number of examples. Unlike
    scikit-learn's stratified split, it accepts labels that only one example has.
    """
    if labels.is_single:
        return _choose_stratified([next(iter(names)) for names in labels.sets], count, generator)
    left = Counter(name for names in labels.sets for name in names)
    taken = []
    for example in generator.permutation(len(labels.sets)):
        names = labels.sets[example]
        if len(taken) < count and all(left[name] > 1 for name in names):
            left.subtract(names)
            taken.append(example)
    return np.array(taken, dtype=np.int64)


def _choose_stratified(names: list[str], count: int, generator: np.random.Generator) -> np.ndarray:
    """Choose examples in proportion to their labels, leaving at least one of each for training.

    Each label gets the integer part of its share; the largest remainders get the rest.
    """
    number = {name: index for index, name in enumerate(sorted(set(names)))}
    label_ids = np.array([number[name] for name in names])
    sizes = np.bincount(label_ids)
    exact = sizes * count / len(names)
    take = np.floor(exact).astype(int)
    left = count - int(take.sum())
    for index in np.argsort(take - exact, kind="stable"):
        if left > 0 and take[index] < sizes[index] - 1:
            take[index] += 1
            left -= 1
    by_label = np.split(np.argsort(label_ids, kind="stable"), np.cumsum(sizes)[:-1])
    return np.concatenate(
        [generator.permutation(found)[:few] for found, few in zip(by_label, take, strict=True)]
    )


def keep_labels(labels: Labels, order: np.ndarray, most: int) -> np.ndarray:
    """Return the first examples of an order, the last ones replaced by examples of missing labels.

    If there are more labels than examples to keep, some labels are lost.
    """
    chosen = list(order[:most])
    has = Counter(name for example in chosen for name in labels.sets[example])
    at = len(chosen) - 1
    for example in order[most:]:
        if all(name in has for name in labels.sets[example]):
            continue
        while at >= 0 and any(has[name] < 2 for name in labels.sets[chosen[at]]):
            at -= 1
        if at < 0:
            break
        has.subtract(labels.sets[chosen[at]])
        has.update(labels.sets[example])
        chosen[at] = example
        at -= 1
    return np.array(chosen, dtype=np.int64)
