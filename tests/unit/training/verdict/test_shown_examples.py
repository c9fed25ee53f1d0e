import numpy as np

from lorakit.data.reading.positions import Place
from lorakit.training.predicted import Predicted
from lorakit.training.verdict.shown_examples import SHOWN, examples_of_predictions

PLACE = Place("the examples", lines=np.arange(2, 102))


def test_mistakes_are_sorted_by_confidence_and_examples_are_random():
    count = 60
    columns = {
        "text": [f"text {n}" for n in range(count)],
        "label": ["a"] * count,
        "prediction": ["a" if n % 3 else "b" for n in range(count)],
        "base_prediction": ["b"] * count,
        "probability": [n / 100 for n in range(count)],
    }
    predicted = Predicted(range(count), {}, count)
    shown = examples_of_predictions(predicted, columns, PLACE, 0)
    assert len(shown.mistakes) == len(shown.random) == SHOWN
    first = shown.mistakes[0]
    assert first.place == "example 58 (line 59)" and first.given == "text 57"
    assert (first.expected, first.adapter, first.base, first.confidence) == ("a", "b", "b", 0.57)
    confidences = [one.confidence for one in shown.mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert shown == examples_of_predictions(predicted, columns, PLACE, 0)
    assert shown.random != examples_of_predictions(predicted, columns, PLACE, 1).random


def test_wrong_words_stand_in_their_text():
    columns = {
        "tokens": [["Anna", "sees", "Rome"], ["x", "", "y"], ["cut", "off"]],
        "tags": [["B-PER", "O", "B-LOC"], ["O", "O", "O"], ["O", "B-LOC"]],
        "prediction": [["O", "O", "O"], ["B-PER", "B-PER"], ["B-PER"]],
        "probability": [[0.6, 0.9, 0.8], [0.99, 0.99], [0.7]],
        "predicted_words": [["Anna", "sees", "Rome"], ["x", "y"], ["cut"]],
    }
    shown = examples_of_predictions(Predicted(range(3), {}, 3), columns, PLACE, 0)
    found = [(one.given, one.expected, one.adapter, one.confidence) for one in shown.mistakes]
    assert found == [
        ("Rome, in: Anna sees Rome", "B-LOC", "O", 0.8),
        ("cut, in: cut", "O", "B-PER", 0.7),
        ("Anna, in: Anna sees Rome", "B-PER", "O", 0.6),
    ]


def test_generated_texts_have_no_confidence():
    columns = {"source": ["a"], "target": ["b"], "prediction": ["c"], "base_prediction": ["d"]}
    shown = examples_of_predictions(Predicted([0], {}, 1), columns, PLACE, 0)
    assert shown.mistakes == () and shown.random[0].confidence is None
    assert (shown.random[0].adapter, shown.random[0].base) == ("c", "d")


def test_a_text_with_several_labels_is_as_wrong_as_its_worst_label():
    columns = {
        "text": ["a", "b", "c"],
        "label": [["x", "y"], ["x"], []],
        "prediction": [["y", "x"], ["x", "y"], ["y"]],
        "probability": [{"x": 0.9, "y": 0.8}, {"x": 0.7, "y": 0.6}, {"x": 0.1, "y": 0.9}],
    }
    shown = examples_of_predictions(Predicted(range(3), {}, 3), columns, PLACE, 0)
    assert [one.given for one in shown.mistakes] == ["c", "b"], "the order of labels is nothing"
