"""Positions of examples in the user's file, for messages: numbers and lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lorakit.errors import first_few


@dataclass(frozen=True)
class Place:
    """The name of a split's examples, and the position of each in its source."""

    name: str
    """Such as "the training examples of 'reviews.csv'"."""

    numbers: np.ndarray | None = None
    """Index of each example in the source, from 0; None if the split is the whole source."""

    lines: np.ndarray | None = None
    """First line of each example in the file, from 1; None for files without lines."""

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    def select(self, examples: Sequence[int] | np.ndarray) -> Place:
        """Return the place of a selection of the examples."""
        chosen = np.asarray(examples, dtype=np.int64)
        numbers = chosen if self.numbers is None else self.numbers[chosen]
        return replace(
            self, numbers=numbers, lines=None if self.lines is None else self.lines[chosen]
        )


def describe_examples(examples: Sequence[int], where: Place | str = "", most: int = 5) -> str:
    """Return the numbers and lines of examples in their source, for messages.

    Args:
        examples: Indices in the split, from 0.
        where: The place of the split; a plain name numbers them consecutively.
        most: Maximum number of examples to list.

    >>> describe_examples([0, 4])
    'examples 1, 5'
    >>> describe_examples(list(range(9)), most=3)
    'examples 1, 2, 3 and 6 more'
    >>> describe_examples([1], Place("x", np.array([7, 3]), np.array([9, 5])))
    'example 4 (line 5)'
    """
    place = where if isinstance(where, Place) else Place(where)
    numbers = examples if place.numbers is None else place.numbers[list(examples)]
    described = _counted("example", [number + 1 for number in numbers], most)
    if place.lines is None:
        return described
    return f"{described} ({_counted('line', place.lines[list(examples)[:most]], most)})"


def _counted(noun: str, numbers: Sequence[int] | np.ndarray, most: int) -> str:
    plural = "" if len(numbers) == 1 else "s"
    return f"{noun}{plural} {first_few((str(number) for number in numbers), most)}"
