"""Thin long series for drawing: the whole run and its extremes stay, most points between go."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorakit.runs.metric_log import Series

MOST_BUCKETS = 1000
"""Number of buckets of a whole series; each keeps at most its lowest and highest point."""

Point = tuple[float, float | None]
"""Step and value; None where the value is not a number."""


@dataclass(frozen=True)
class Patch:
    """A change of drawn points: the first `kept` stay, `points` follow them."""

    kept: int
    points: list[Point]


class ThinnedSeries:
    """A series as a page has drawn it; `patch` says what to change when the series has grown.

    Points go into buckets of equal counts, a power of two. While the count fits, only the last
    bucket and new ones change; then all buckets become twice as wide.
    """

    def __init__(self, most_buckets: int = MOST_BUCKETS) -> None:
        self._most = most_buckets
        self._drawn: tuple[Series, int, int, int] | None = None
        self._complete = self._kept = 0

    def patch(self, series: Series) -> Patch | None:
        """Return the change since the last call, or None if there is none to draw."""
        width = self._drawn[1] if self._drawn else 1
        while math.ceil(len(series) / width) > self._most:
            width *= 2
        drawn = (series, width, series.revision, len(series))
        if drawn == self._drawn:
            return None
        if self._drawn is None or drawn[:3] != self._drawn[:3]:
            self._complete = self._kept = 0
        self._drawn = drawn
        kept = self._kept
        points: list[Point] = []
        for start in range(self._complete * width, len(series), width):
            stop = min(start + width, len(series))
            points += _bucket(series, start, stop, is_ending=stop == len(series))
            if stop < len(series):
                self._complete += 1
                self._kept = kept + len(points)
        return Patch(kept, points)


def thin(
    series: Series, low: float = -math.inf, high: float = math.inf, most: int = MOST_BUCKETS
) -> list[Point]:
    """Return the points of a range of steps, thinned, with one more point on each side."""
    first = max(0, bisect_left(series.steps, low) - 1)
    last = min(len(series), bisect_right(series.steps, high) + 1)
    width = max(1, math.ceil((last - first) / most))
    return [
        point
        for start in range(first, last, width)
        for point in _bucket(
            series, start, min(start + width, last), is_ending=start + width >= last
        )
    ]


def _bucket(series: Series, start: int, stop: int, *, is_ending: bool) -> Iterator[Point]:
    """Yield the lowest and highest point of a bucket in their order, and the ends of a series."""
    chosen = set(_extremes(series.values[start:stop]))
    if start == 0:
        chosen.add(0)
    if is_ending:
        chosen.add(stop - start - 1)
    for place in sorted(chosen):
        value = series.values[start + place]
        yield series.steps[start + place], value if math.isfinite(value) else None


def _extremes(values: Sequence[float]) -> tuple[int, ...]:
    total = sum(values)
    if total == total:
        return values.index(min(values)), values.index(max(values))
    gap = next(place for place, value in enumerate(values) if value != value)
    finite = [value for value in values if value == value]
    if not finite:
        return (gap,)
    return values.index(min(finite)), values.index(max(finite)), gap


def zoom(series: Series, low: float, high: float) -> list[Point]:
    """Return the points of a range of steps in detail, and the rest of the run in outline."""
    outline = thin(series, most=MOST_BUCKETS // 4)
    detail = thin(series, low, high)
    if not detail:
        return outline
    first, last = detail[0][0], detail[-1][0]
    before = [point for point in outline if point[0] < first]
    return [*before, *detail, *(point for point in outline if point[0] > last)]
