import numpy as np
import pytest

from lorakit.analysis.baselines import (
    commonest,
    guess_answer,
    guess_class,
    guess_label_set,
    guess_numbers,
    guess_tag,
    guess_vote,
)
from lorakit.analysis.target_metrics import multi_label_metrics, regression_metrics


def means(guess):
    return {one.metric: one.mean for one in guess.scores}


def test_the_commonest_is_the_lower_one_of_two():
    assert commonest([2, 1, 2, 1, 0]) == 1 and commonest([3]) == 3


def test_a_class_is_the_commonest_of_what_is_known():
    guess = guess_class([1, 1, 0], [0, 0, 1, 0], ("no", "yes"))
    assert means(guess) == {"accuracy": 0.25}
    assert guess.baseline == "guessing the commonest class" and "('yes') every time" in guess.note


def test_a_tag_does_not_count_where_there_is_none():
    known = [[-100, 1, -100], [-100, 1, 0]]
    guess = guess_tag(known, [[-100, 1, 0, -100], [1]], ("NOUN", "VERB"))
    assert means(guess) == {"word accuracy": pytest.approx(2 / 3)}
    assert guess_tag(known, [[0]], ("O", "B-PER")).scores[0].metric == "F1"


def test_a_set_of_labels_is_the_best_one_that_reads_no_text():
    generator = np.random.default_rng(0)
    labels = ("a", "b", "c")
    targets = (generator.random((60, 3)) < [0.2, 0.9, 0.6]).astype(float)
    guess = guess_label_set(targets, targets, labels)
    sets = [np.array([bool(n & 1), bool(n & 2), bool(n & 4)]) for n in range(1, 8)]

    def logits(chosen):
        return np.where(np.broadcast_to(chosen, targets.shape), 5.0, -5.0)

    every = [multi_label_metrics(targets, logits(chosen), labels) for chosen in sets]
    best = max(every, key=lambda found: found["micro_f1"])
    assert means(guess) == pytest.approx(
        {"micro F1": best["micro_f1"], "macro F1": best["macro_f1"]}
    )
    assert "('b', 'c') for every text" in guess.note


@pytest.mark.parametrize("names", [("score",), ("x", "y")])
def test_numbers_are_their_mean(names):
    generator = np.random.default_rng(1)
    known, expected = generator.normal(3, 1, (2, 40, len(names)))
    if len(names) == 1:
        known, expected = known[:, 0], expected[:, 0]
    guess = guess_numbers(known.tolist(), expected.tolist(), names)
    found = regression_metrics(expected, np.broadcast_to(known.mean(0), expected.shape), names)
    assert {name.lower(): np.exp(mean) for name, mean in means(guess).items()} == pytest.approx(
        {"rmse": found["rmse"], "mae": found["mae"]}
    )
    assert f"the mean of {' and '.join(names)} (" in guess.note and "noise" in guess.note


def test_answers_are_chance_and_votes_the_commonest():
    assert means(guess_answer(7)) == {"accuracy": 0.5}
    guess = guess_vote([1, 0, 0], [1, 0, 0, 0])
    assert means(guess) == {"accuracy": 0.75} and "commonest vote (bad)" in guess.note
