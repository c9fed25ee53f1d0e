"""Read predictions.jsonl: how many are right, which classes are confused, and examples of both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.runs.compare import value_text
from lorakit.runs.metric_log import parse_row

_MOST_BYTES = 64_000_000
_MOST_CLASSES = 40
"""Largest number of classes whose confusion is a table that can be read."""


@dataclass(frozen=True)
class Prediction:
    """One validation example, and what the models say."""

    text: str
    """Its input; each of several columns is on a separate line."""
    expected: str
    adapter: str
    """Prediction with the adapter."""
    base: str | None
    """Prediction of the base alone, or None if it was not asked."""
    confidence: float | None
    """Probability that the adapter gives its prediction, or None."""
    is_several: bool = False
    """Whether it is any number of labels."""
    off_by: float | None = None
    """How far a predicted number is from the expected one, or None."""

    @property
    def is_right(self) -> bool:
        """Whether the adapter predicts what is expected."""
        return self.adapter.strip() == self.expected.strip()

    @property
    def is_base_right(self) -> bool:
        """Whether the base alone predicts what is expected."""
        return self.base is not None and self.base.strip() == self.expected.strip()


@dataclass(frozen=True)
class Predictions:
    """All predictions of a run on its validation examples."""

    all: tuple[Prediction, ...]
    problem: str | None = None
    """What is wrong with the file, or None."""

    @property
    def has_base(self) -> bool:
        """Whether the base was asked, too."""
        return any(one.base is not None for one in self.all)

    @property
    def has_confidence(self) -> bool:
        """Whether the adapter's predictions have probabilities; generated texts have none."""
        return any(one.confidence is not None for one in self.all)

    @property
    def are_numbers(self) -> bool:
        """Whether the predictions are numbers, which are near rather than right."""
        return any(one.off_by is not None for one in self.all)

    def farthest(self) -> list[Prediction]:
        """Return the predicted numbers, those that are farthest off first; NaN is off the most."""

        def distance(one: Prediction) -> float:
            off_by = one.off_by or 0.0
            return math.inf if math.isnan(off_by) else off_by

        return sorted(self.all, key=distance, reverse=True)

    def wrong(self) -> list[Prediction]:
        """Return the wrong ones, the most confident first."""
        wrong = [one for one in self.all if not one.is_right]
        return sorted(wrong, key=lambda one: -(one.confidence or 0.0))

    def right(self) -> list[Prediction]:
        """Return the right ones, the least confident first."""
        right = [one for one in self.all if one.is_right]
        return sorted(right, key=lambda one: one.confidence or 0.0)

    def base_table(self) -> dict[tuple[bool, bool], int]:
        """Count the examples by whether base and adapter are right."""
        return Counter((one.is_base_right, one.is_right) for one in self.all)

    def classes(self) -> list[str]:
        """Return the classes by name; none where the predictions are texts, or several labels."""
        if self.are_numbers or any(one.is_several for one in self.all):
            return []
        names = sorted({word for one in self.all for word in (one.expected, one.adapter)})
        return names if 2 <= len(names) <= min(_MOST_CLASSES, max(2, len(self.all))) else []

    def confusion(self) -> dict[tuple[str, str], int]:
        """Count the examples by expected and predicted class."""
        return Counter((one.expected, one.adapter) for one in self.all)


def read_predictions(path: Path, expected: str = "expected") -> Predictions | None:
    """Read a file of predictions, or return None if there is none.

    Each line is a JSON object with the expected answer, `prediction`, and where known
    `base_prediction`, `probability` and `predicted_words`; all others are the example's input.
    Training writes such a file, and `lorakit predict` from a file of labelled examples.

    Args:
        path: predictions.jsonl of a run.
        expected: Key of the expected answer in a row that has no "expected".
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Predictions((), f"Cannot read {path}: {error.strerror}. Check its permissions.")
    found: list[Prediction] = []
    problem = None
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        row = parse_row(line)
        if row is not None and "expected" not in row and expected in row:
            row["expected"] = row.pop(expected)
        if row is None or "expected" not in row or "prediction" not in row:
            problem = problem or (
                f"Cannot read all of {path}: line {number} is not a JSON object with 'expected' "
                "and 'prediction'. The other lines are shown."
            )
        else:
            found.append(_prediction(row))
    return Predictions(tuple(found), problem)


_ANSWERS = ("expected", "prediction", "base_prediction", "probability", "predicted_words")


def _prediction(row: Mapping[str, Any]) -> Prediction:
    inputs = {key: value for key, value in row.items() if key not in _ANSWERS}
    texts = [
        value_text(value) if len(inputs) == 1 else f"{key}: {value_text(value)}"
        for key, value in inputs.items()
    ]
    base, share = row.get("base_prediction"), row.get("probability")
    confidence = float(share) if isinstance(share, float) else None
    is_several = isinstance(share, dict)
    answers = (row["expected"], row["prediction"], base)
    if is_several:  # in one order, so that the same labels are the same text
        answers = tuple(sorted(one, key=str) if isinstance(one, list) else one for one in answers)
    expected, prediction, base = answers
    return Prediction(
        "\n".join(texts),
        value_text(expected),
        value_text(prediction),
        None if base is None else value_text(base),
        confidence,
        is_several,
        _distance(expected, prediction),
    )


def _distance(expected: Any, prediction: Any) -> float | None:
    """Return the mean distance of a predicted number, or several, from the expected ones."""
    pairs = [(expected, prediction)]
    if isinstance(expected, list) and isinstance(prediction, list):
        pairs = list(zip(expected, prediction, strict=False))
    if not pairs or not all(isinstance(one, float) for _, one in pairs):
        return None
    try:
        return sum(abs(float(right) - one) for right, one in pairs) / len(pairs)
    except (TypeError, ValueError):
        return None
