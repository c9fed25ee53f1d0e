import pytest

from fixtures.tasks import assert_loss_of_the_model
from lorakit.errors import DataError

ROWS = [{"text": "good film", "label": 0.5}, {"text": "bad film", "label": -0.25}] * 6


def test_a_number_is_the_target(prepare_texts):
    made = prepare_texts(ROWS)

    assert made.labels == ("label",)
    assert made.model.config.problem_type == "regression" and made.model.config.num_labels == 1
    assert made.encoded.train["labels"][:] == made.splits.train["label"][:]
    assert made.preview_examples(1)[0].note in ("target: 0.5", "target: -0.25")


def test_the_loss_is_that_of_the_model(prepare_texts, tmp_path):
    assert_loss_of_the_model(prepare_texts(ROWS), tmp_path)


def test_each_split_has_as_many_numbers(prepare_texts, jsonl):
    rows = [{"text": "good", "label": [0.5, n]} for n in (0.25, 1.0)] * 2
    other = jsonl([{"text": "good", "label": [0.5]}], "other.jsonl")
    with pytest.raises(DataError, match="got 1 in each example, expected 2 as in the training"):
        prepare_texts(rows, validation=other)


def test_equal_numbers_are_nothing_to_predict(prepare_texts):
    rows = [{"text": text, "label": 1.5} for text in ("good film", "bad film")] * 6
    with pytest.raises(DataError, match=r"Nothing to predict in .*: got \[1.5\] in every example"):
        prepare_texts(rows, problem_type="regression")
