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
    """First line of each example in the file, from 1; None for files without lines, and 0 for an
    example of such a file among others."""

    files: tuple[str, ...] = ()
    """The files that the examples come from, if there are several."""

    file_of: np.ndarray | None = None
    """Index in `files` of each example's file."""

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    def select(self, examples: Sequence[int] | np.ndarray) -> Place:
        """Return the place of a selection of the examples."""
        chosen = np.asarray(examples, dtype=np.int64)
        numbers = chosen if self.numbers is None else self.numbers[chosen]
        lines = None if self.lines is None else self.lines[chosen]
        file_of = None if self.file_of is None else self.file_of[chosen]
        return replace(self, numbers=numbers, lines=lines, file_of=file_of)


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
    if place.file_of is not None and len(examples):
        return _in_files(list(examples), numbers, place, most)
    described = _list_numbers("example", [number + 1 for number in numbers], most)
    if place.lines is None:
        return described
    return f"{described} ({_list_numbers('line', place.lines[list(examples)[:most]], most)})"


def _in_files(
    examples: Sequence[int], numbers: Sequence[int] | np.ndarray, place: Place, most: int
) -> str:
    """Return examples with the file of each."""
    said: list[str] = []
    for at, number in zip(examples[:most], numbers, strict=False):
        line = 0 if place.lines is None else place.lines[at]
        where = f" (line {line})" if line else ""
        file = place.files[place.file_of[at]]  # type: ignore[index]  # `file_of` comes with files
        said.append(f"{number + 1}{where} of '{file}'")
    rest = len(examples) - len(said)
    noun = "example" if len(examples) == 1 else "examples"
    return f"{noun} {', '.join(said)}" + (f" and {rest} more" if rest > 0 else "")


def _list_numbers(noun: str, numbers: Sequence[int] | np.ndarray, most: int) -> str:
    plural = "" if len(numbers) == 1 else "s"
    return f"{noun}{plural} {first_few((str(number) for number in numbers), most)}"
