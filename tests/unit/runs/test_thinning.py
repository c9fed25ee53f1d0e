import math
import random

import pytest

from lorakit.runs.metric_log import Series
from lorakit.runs.thinning import ThinnedSeries, thin, zoom


def series_of(values):
    series = Series()
    for step, value in enumerate(values, 1):
        series.add(step, value)
    return series


class Page:
    """Applies patches as the browser does."""

    def __init__(self, most=8):
        self.thinned, self.points = ThinnedSeries(most), []

    def update(self, series):
        patch = self.thinned.patch(series)
        if patch is not None:
            assert patch.kept <= len(self.points)
            self.points[patch.kept :] = patch.points
        return patch


def noisy(count):
    generator = random.Random(0)
    return [generator.uniform(0, 1) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 100, 20_000])
def test_the_whole_run_and_its_extremes_stay(count):
    values = noisy(count)
    values[count // 3], values[count // 2] = 5.0, -5.0
    page = Page(1000)
    page.update(series_of(values))
    steps = [step for step, _ in page.points]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, count)
    assert len(page.points) <= 2 * 1000 + 2
    drawn = [value for _, value in page.points]
    assert (min(drawn), max(drawn)) == (min(values), max(values))


def test_growing_step_by_step_draws_what_drawing_at_once_does():
    values = noisy(500)
    growing, page = Series(), Page()
    for step, value in enumerate(values, 1):
        growing.add(step, value)
        page.update(growing)
        at_once = Page()
        at_once.update(growing)
        assert page.points == at_once.points


def test_an_append_changes_only_the_end():
    series = series_of(noisy(20_000))
    page = Page(1000)
    page.update(series)
    series.add(20_001, 0.5)
    patch = page.update(series)
    assert len(patch.points) <= 4
    assert patch.kept > 900
    assert page.update(series) is None


def test_a_resumed_run_is_drawn_again():
    series, page = series_of(noisy(100)), Page()
    page.update(series)
    series.add(50, 9.0)
    assert page.update(series).kept == 0
    assert page.points[-1] == (50, 9.0)
    assert page.update(series_of(noisy(50))).kept == 0  # another file with as many points


def test_a_gap_stays_a_gap():
    page = Page()
    page.update(series_of([1.0, math.nan, *noisy(50), math.nan, 7.0]))
    values = [value for _, value in page.points]
    assert None in values
    assert max(value for value in values if value is not None) == 7.0
    page.update(series_of([math.nan] * 100))
    assert {value for _, value in page.points} == {None}


def test_numbers_whose_sum_is_too_large_are_no_gap():
    page = Page(1)
    page.update(series_of([1e308, 1e308, -1e308]))
    assert [value for _, value in page.points] == [1e308, -1e308]


def test_an_empty_series_draws_nothing():
    page = Page()
    page.update(Series())
    assert page.points == []
    assert thin(Series()) == []


def test_a_range_has_all_its_points_and_one_on_each_side():
    series = series_of(noisy(20_000))
    points = thin(series, 5_000, 5_100)
    assert [step for step, _ in points] == list(range(4_999, 5_102))
    assert len(thin(series)) <= 2_002


def test_a_zoomed_run_still_has_its_ends():
    series = series_of(noisy(20_000))
    points = zoom(series, 5_000, 5_100)
    steps = [step for step, _ in points]
    assert (steps[0], steps[-1]) == (1, 20_000)
    assert steps == sorted(set(steps))
    assert set(range(5_000, 5_101)) <= set(steps)
    assert zoom(Series(), 1, 2) == []
