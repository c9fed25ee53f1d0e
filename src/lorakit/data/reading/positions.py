"""Where examples stand in what the user named, for messages: numbers and lines of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lorakit.errors import first_few


@dataclass(frozen=True)
class Place:
    """What to call the examples of a split, and where each stands in its source."""

    name: str
    """Such as "the training examples of 'reviews.csv'"."""

    numbers: np.ndarray | None = None
    """Place of each example in the source, counted from 0; None where they are all in order."""

    lines: np.ndarray | None = None
    """Line in the file on which each example begins, counted from 1; None where there are none."""

    def __str__(self) -> str:
        """Return the name, as messages have it."""
        return self.name

    def select(self, examples: Sequence[int] | np.ndarray) -> Place:
        """Return the place of some of the examples."""
        chosen = np.asarray(examples, dtype=np.int64)
        numbers = chosen if self.numbers is None else self.numbers[chosen]
        return replace(
            self, numbers=numbers, lines=None if self.lines is None else self.lines[chosen]
        )


def listed(examples: Sequence[int], where: Place | str = "", most: int = 5) -> str:
    """Return which examples are meant, as their source numbers them.

    Args:
        examples: Positions in the split, counted from 0.
        where: The place of the split; a plain name numbers them as they come.
        most: How many are named.

    >>> listed([0, 4])
    'examples 1, 5'
    >>> listed(list(range(9)), most=3)
    'examples 1, 2, 3 and 6 more'
    >>> listed([1], Place("x", np.array([7, 3]), np.array([9, 5])))
    'example 4 (line 5)'
    """
    place = where if isinstance(where, Place) else Place(where)
    numbers = examples if place.numbers is None else place.numbers[list(examples)]
    said = _counted("example", [number + 1 for number in numbers], most)
    if place.lines is None:
        return said
    return f"{said} ({_counted('line', place.lines[list(examples)[:most]], most)})"


def _counted(noun: str, numbers: Sequence[int] | np.ndarray, most: int) -> str:
    plural = "" if len(numbers) == 1 else "s"
    return f"{noun}{plural} {first_few((str(number) for number in numbers), most)}"
