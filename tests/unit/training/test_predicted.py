import json

import numpy as np
import pytest

from lorakit.training import predicted as predicted_module
from lorakit.training.predicted import (
    Evaluated,
    predict_classes,
    predict_tags,
    prediction_table,
)

LABELS = ("no", "yes", "unsure")


def test_classes_are_in_the_order_of_the_data():
    scores = np.log(np.array([[8, 1, 1], [1, 7, 2], [2, 2, 6]], dtype=np.float32))
    found = predict_classes(Evaluated(scores, np.array([0, 1, 1]), [2, 0, 1]), LABELS)
    assert found.numbers == [0, 1, 2] and found.total == 3 and found.labels == LABELS
    assert found.columns["prediction"] == ["yes", "unsure", "no"]
    assert found.columns["probability"] == pytest.approx([0.7, 0.6, 0.8])
    assert found.confusion.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_the_first_examples_are_kept_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(predicted_module, "MOST_EXAMPLES", 2)
    scores = np.eye(3, dtype=np.float32)[[2, 1, 0, 0]]
    found = predict_classes(Evaluated(scores, np.zeros(4, dtype=int), [3, 2, 1, 0]), LABELS)
    assert found.numbers == [0, 1] and found.columns["prediction"] == ["no", "no"]
    assert found.total == 4 and found.confusion.sum() == 4


def test_examples_of_a_dropped_last_batch_have_no_prediction():
    scores = np.eye(3, dtype=np.float32)[[2, 1]]
    found = predict_classes(Evaluated(scores, np.array([2, 1]), [4, 0, 2]), LABELS)
    assert found.numbers == [0, 4] and found.columns["prediction"] == ["yes", "unsure"]


def test_many_classes_are_not_counted():
    labels = [str(number) for number in range(31)]
    scores = np.eye(31, dtype=np.float32)[[30]]
    found = predict_classes(Evaluated(scores, np.array([30]), [0]), labels)
    assert found.confusion is None and found.columns["prediction"] == ["30"]


def test_tags_of_the_words_that_count():
    scores = np.log(np.array([[[1, 9], [8, 2]], [[6, 4], [7, 3]]], dtype=np.float32))
    found = predict_tags(Evaluated(scores, np.array([[-100, 1], [0, 1]]), [1, 0]), ("O", "B-X"))
    assert found.columns["prediction"] == [["O", "O"], ["O"]]
    assert found.columns["probability"] == [pytest.approx([0.6, 0.7]), pytest.approx([0.8])]
    assert found.confusion is None


def test_columns_of_the_data_do_not_hide_new_ones():
    new = {"prediction": ["c"], "probability": [0.5]}
    made = prediction_table({"text": ["a"], "probability": ["x"]}, "label", ["b"], new)
    assert json.dumps(made) == json.dumps(
        {
            "text": ["a"],
            "input_probability": ["x"],
            "label": ["b"],
            "prediction": ["c"],
            "probability": [0.5],
        }
    )
    assert list(prediction_table({"a": []}, "expected", [], {})) == ["a", "expected"]
