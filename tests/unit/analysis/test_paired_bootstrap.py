"""The interval against the closed form, all resamples of a few examples, and its coverage."""

from dataclasses import astuple
from itertools import product

import numpy as np
import pytest

from lorakit.analysis import paired_bootstrap
from lorakit.analysis.example_scores import ExampleScores
from lorakit.analysis.paired_bootstrap import Interval, paired_difference


def shares(points):
    points = np.asarray(points, np.float64)
    return ExampleScores("accuracy", points, np.ones_like(points))


def test_of_many_examples_it_is_that_of_the_closed_form():
    generator = np.random.default_rng(0)
    before = generator.random(2000) < 0.6
    after = np.where(generator.random(2000) < 0.8, before, generator.random(2000) < 0.9)
    found = paired_difference(shares(before), shares(after))
    differences = after.astype(float) - before
    half = 1.96 * differences.std() / np.sqrt(2000)
    assert found.value == pytest.approx(differences.mean())
    assert found.half_width == pytest.approx(half, rel=0.05)
    assert (found.low + found.high) / 2 == pytest.approx(found.value, abs=half / 10)


def test_what_both_find_difficult_does_not_widen_it():
    generator = np.random.default_rng(1)
    before = generator.random(400) < 0.5
    after = before.copy()
    after[:20] = True
    paired = paired_difference(shares(before), shares(after))
    unpaired = paired_difference(shares(before), shares(generator.permutation(after)))
    assert paired.half_width < unpaired.half_width / 3


def test_of_a_ratio_it_is_that_of_all_resamples(monkeypatch):
    monkeypatch.setattr(paired_bootstrap, "_RESAMPLES", 100_000)
    before = ExampleScores("F1", np.array([2.0, 0, 4, 1]), np.array([3.0, 2, 8, 2]))
    after = ExampleScores("F1", np.array([2.0, 1, 7, 2]), np.array([3.0, 4, 8, 2]))
    every = []
    for chosen in product(range(4), repeat=4):
        at = list(chosen)
        every.append(
            after.points[at].sum() / after.weights[at].sum()
            - before.points[at].sum() / before.weights[at].sum()
        )
    found = paired_difference(before, after)
    assert found.value == pytest.approx(after.mean - before.mean)
    for end, share in ((found.low, 2.5), (found.high, 97.5)):
        # The ends are values of the discrete distribution beside the exact quantile.
        near = np.percentile(every, [share - 0.5, share + 0.5])
        assert near[0] - 1e-9 <= end <= near[1] + 1e-9


def test_it_holds_the_truth_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(paired_bootstrap, "_RESAMPLES", 1000)
    generator = np.random.default_rng(2)
    held = 0
    for seed in range(200):
        before = generator.normal(0, 1, 100)
        after = before + generator.normal(0.3, 0.5, 100)
        found = paired_difference(shares(before), shares(after), seed)
        held += found.low <= 0.3 <= found.high
    assert 180 <= held <= 198


def test_the_seed_decides_and_equal_scores_have_no_interval(monkeypatch):
    generator = np.random.default_rng(3)
    before, after = shares(generator.random(50)), shares(generator.random(50))
    assert paired_difference(before, after, 5) == paired_difference(before, after, 5)
    assert paired_difference(before, after, 5) != paired_difference(before, after, 6)
    assert paired_difference(before, before) == Interval(0.0, 0.0, 0.0)
    whole = paired_difference(before, after)
    monkeypatch.setattr(paired_bootstrap, "_DRAWS_AT_ONCE", 50 * 7)  # draws in parts are the same
    in_parts = paired_difference(before, after)  # a product of another shape may round otherwise
    assert astuple(in_parts) == pytest.approx(astuple(whole), rel=1e-12)


def test_nothing_to_divide_by_scores_zero():
    nothing = ExampleScores("F1", np.zeros(3), np.zeros(3))
    assert paired_difference(nothing, shares([1, 1, 1])) == Interval(1.0, 1.0, 1.0)


def test_without_examples_there_is_no_difference():
    nothing = shares([])
    assert paired_difference(nothing, nothing) == Interval(0.0, 0.0, 0.0)
