"""The interval of a difference between two models, by resampling the examples that both saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorakit.analysis.example_scores import ExampleScores

CONFIDENCE = 0.95
_RESAMPLES, _FEWEST_RESAMPLES = 4000, 400
_MOST_DRAWS = 160_000_000
"""Largest number of values drawn over all resamples, as long as these are enough."""
_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A value, and where it lies with 95% confidence."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2

    def map(self, function: Callable[[float], float]) -> Interval:
        """Apply a monotonic function to the value and both ends.

        >>> Interval(2.0, 1.0, 4.0).map(lambda x: -x)
        Interval(value=-2.0, low=-4.0, high=-1.0)
        """
        low, high = sorted((function(self.low), function(self.high)))
        return Interval(function(self.value), low, high)


def paired_difference(before: ExampleScores, after: ExampleScores, seed: int = 0) -> Interval:
    """Return the level of `after` minus that of `before`, with its interval.

    The percentile bootstrap: examples are drawn with replacement, the same for both models, so that
    an example that is difficult for both does not widen the interval (Efron and Tibshirani, An
    Introduction to the Bootstrap, chapter 13).

    Args:
        before: Scores of one model.
        after: Scores of the other, on the same examples in the same order.
        seed: Seed of the draws.

    Returns: The difference; 0 without examples.
    """
    count = len(after)
    if not count:
        return Interval(0.0, 0.0, 0.0)
    columns = np.concatenate([before.columns, after.columns], 1)

    def difference(sums: Any) -> Any:
        first, second = np.split(sums, 2, -1)
        return after.level(second) - before.level(first)

    resamples = int(np.clip(_MOST_DRAWS // columns.size, _FEWEST_RESAMPLES, _RESAMPLES))
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // count)
    differences: list[Any] = []
    for done in range(0, resamples, at_once):
        size = min(at_once, resamples - done)
        # How often each example is drawn.
        times = generator.multinomial(count, np.full(count, 1 / count), size=size)
        differences.append(difference(times.astype(np.float64) @ columns))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(differences), [tail, 100 - tail])
    return Interval(float(difference(columns.sum(0))), float(low), float(high))
