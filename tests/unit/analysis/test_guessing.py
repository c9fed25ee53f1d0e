"""What guessing gives, and what counts as better than it."""

import pytest

from lorakit.analysis.guessing import EVENT, Reference, guesses, reference_of, warning
from lorakit.recipes.run_directory import RunDirectory

FIVE = {"labels": [0, 1, 2, 3, 4] * 8}


def test_five_balanced_classes_are_guessed_at_a_fifth():
    found = guesses("SEQ_CLS", FIVE)
    assert found["count"] == 40
    assert found["eval_accuracy"] == pytest.approx(0.2)
    assert found["eval_f1"] == pytest.approx(0.2)
    assert found["eval_loss"] == pytest.approx(1.6094, abs=1e-4)


def test_words_are_guessed_without_padding_and_texts_not_at_all():
    found = guesses("TOKEN_CLS", {"labels": [[-100, 0, 0, 1], [0, -100]]})
    assert (found["count"], found["eval_accuracy"]) == (4, 0.75)
    assert guesses("CAUSAL_LM", FIVE) == {}
    assert guesses("SEQ_CLS", None) == {}


@pytest.mark.parametrize(
    ("metric", "value", "is_minimized", "spread", "is_beaten"),
    [
        ("eval_accuracy", 0.175, False, 0.0, False),
        ("eval_accuracy", 0.225, False, 0.0, False),  # of 40 examples that is chance
        ("eval_accuracy", 0.6, False, 0.1, True),
        ("eval_accuracy", 0.6, False, 0.5, False),
        ("eval_loss", 1.7, True, 0.0, False),
        ("eval_loss", 1.2, True, 0.1, True),
        ("eval_loss", 1.55, True, 0.1, False),
        ("eval_rouge1", 0.1, False, 0.0, True),  # nothing is known of it
    ],
)
def test_better_than_guessing_is_better_by_more_than_the_spread(
    metric, value, is_minimized, spread, is_beaten
):
    found = guesses("SEQ_CLS", FIVE)
    reference = Reference(found, "guessing", found["count"])
    assert reference.beaten_by(metric, value, is_minimized, spread) is is_beaten


def test_what_is_no_better_than_guessing_is_warned_of():
    found = guesses("SEQ_CLS", FIVE)
    guessing = Reference(found, "guessing", found["count"])
    assert warning(guessing, {"eval_accuracy": 0.175}) == (
        "Nothing seems to have been learnt: the validation accuracy of 0.175 is not better than "
        "guessing (0.2) by more than chance."
    )
    assert warning(guessing, {"eval_accuracy": 0.9, "eval_loss": 9.0}) is None
    assert warning(guessing, {}) is None
    assert warning(None, {"eval_accuracy": 0.0}) is None


def test_a_language_model_is_compared_with_itself_before_training(tmp_path):
    run = RunDirectory(tmp_path)
    assert reference_of(run) is None
    run.append_metrics({"event": "evaluation", "step": 0, "eval_loss": 3.0})
    run.append_metrics({"event": "evaluation", "step": 9, "eval_loss": 2.0})
    before = reference_of(run)
    assert before is not None and before.metrics == {"eval_loss": 3.0}
    run.append_metrics({"event": EVENT, "step": 0, "count": 40, "eval_loss": 1.0})
    guessed = reference_of(run)
    assert guessed is not None and guessed.count == 40
