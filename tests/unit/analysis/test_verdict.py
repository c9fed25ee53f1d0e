import json
import math

import numpy as np
import pytest

from lorakit.analysis.example_scores import ExampleScores
from lorakit.analysis.paired_bootstrap import Interval
from lorakit.analysis.verdict import (
    Comparison,
    Forgetting,
    Verdict,
    compare,
    measure_forgetting,
    spread,
)


def comparison(value, low, high, metric="accuracy", examples=100, baseline="the base"):
    return Comparison(metric, baseline, 0.5, 0.6, Interval(value, low, high), examples)


def forgetting(value, low, high):
    return Forgetting(10.0, 11.0, Interval(value, low, high), 36, 2000)


NOTHING = forgetting(0.2, -0.5, 0.9)


@pytest.mark.parametrize(
    ("found", "forgotten", "sentence"),
    [
        (
            comparison(12.1, 9.8, 14.4),
            NOTHING,
            "Better than the base by 12.1 ± 2.3 points of accuracy, forgets nothing measurable.",
        ),
        (
            comparison(-3.0, -4.1, -1.9),
            forgetting(12.3, 10.3, 14.3),
            "Worse than the base by 3.0 ± 1.1 points of accuracy, forgets 12.3 ± 2.0% (perplexity "
            "of neutral text).",
        ),
        (
            comparison(0.4, -1.7, 2.5, "F1"),
            None,
            "Not distinguishable from the base: F1 +0.4 ± 2.1 points.",
        ),
        (
            comparison(71.2, 69.7, 72.7, "perplexity"),
            NOTHING,
            "Better than the base by 71.2 ± 1.5% of perplexity, forgets nothing measurable.",
        ),
        (
            comparison(-1.0, -4.0, 2.0, "perplexity"),
            None,
            "Not distinguishable from the base: perplexity +1.0 ± 3.0%.",
        ),
        (
            comparison(41.9, 31.0, 50.0, "perplexity", 6),
            NOTHING,
            "Too few examples to tell (6): perplexity -41.9% against the base, forgets nothing "
            "measurable.",
        ),
        (
            comparison(1.0, 0.1, 3.0, baseline="guessing the commonest class"),
            None,
            "Better than guessing the commonest class by 1.0 (0.1 to 3.0) points of accuracy.",
        ),
        (None, NOTHING, "Forgets nothing measurable."),
        (None, forgetting(5400, 5200, 5600), "Forgets 5,400 ± 200% (perplexity of neutral text)."),
        (None, None, None),
    ],
)
def test_the_sentence(found, forgotten, sentence):
    assert Verdict(found, forgotten).sentence == sentence


def test_a_falling_perplexity_of_neutral_text_is_nothing_forgotten():
    assert forgetting(-5, -6, -4).clause() == "forgets nothing measurable"


def test_points_of_accuracy():
    before = ExampleScores("accuracy", np.zeros(40), np.ones(40))
    points = np.zeros(40)
    points[:30] = 1
    found = compare(before, ExampleScores("accuracy", points, np.ones(40)), "the base")
    assert (found.before, found.after, found.examples) == (0.0, 0.75, 40)
    assert found.gain.value == pytest.approx(75) and found.outcome == "better"
    assert 59 < found.gain.low < 65 and 85 < found.gain.high < 90


def losses(means, tokens=10):
    sums = np.array(means, np.float64) * tokens
    return ExampleScores("perplexity", sums, np.full(len(sums), float(tokens)))


def test_percent_of_perplexity():
    base = losses(np.linspace(1, 3, 30))
    half = losses(np.linspace(1, 3, 30) - math.log(2))
    found = compare(base, half, "the base")
    assert found.before == pytest.approx(math.exp(2))
    assert found.after == pytest.approx(math.exp(2) / 2)
    assert found.gain.value == pytest.approx(50) and found.gain.half_width < 1e-6
    assert compare(half, base, "the base").gain.value == pytest.approx(-100)


def test_what_is_forgotten_is_the_rise_of_the_perplexity():
    generator = np.random.default_rng(0)
    base = losses(generator.normal(3, 1, 36))
    rise = np.log(1.1) + generator.normal(0, 0.02, 36)
    worse = losses(base.points / 10 + rise)
    found = measure_forgetting(base, worse)
    assert found.is_measurable and found.rise.value == pytest.approx(10, abs=1.5)
    assert (found.texts, found.tokens) == (36, 360)
    same = measure_forgetting(base, losses(base.points / 10 + generator.normal(0, 0.02, 36)))
    assert not same.is_measurable
    broken = measure_forgetting(base, losses(np.full(36, 800.0)))
    assert broken.after == math.inf
    assert broken.rise.value == pytest.approx(1_000_000) and broken.is_measurable


def test_small_intervals_have_more_digits():
    assert spread(Interval(0.12, 0.1, 0.14)) == "0.12 ± 0.02"
    assert spread(Interval(1234.4, 1200, 1270)) == "1,234 ± 35"


def test_the_facts_are_json():
    broken = measure_forgetting(losses(np.full(36, 1.0)), losses(np.full(36, 800.0)))
    facts = Verdict(comparison(1.0, 0.1, 3.0), broken, ("A note.",)).facts()
    read = json.loads(json.dumps(facts, allow_nan=False))
    assert read["sentence"].startswith("Better than") and read["outcome"] == "better"
    assert read["comparison"]["gain"] == {"value": 1.0, "low": 0.1, "high": 3.0}
    assert read["forgetting"]["after"] is None and read["notes"] == ["A note."]
    assert Verdict(None, None).facts()["outcome"] is None
