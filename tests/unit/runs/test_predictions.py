import json

import pytest

from lorakit.runs.predictions import read_predictions


@pytest.fixture
def read(tmp_path):
    def write_and_read(*rows):
        path = tmp_path / "predictions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_predictions(path)

    return write_and_read


def row(expected, prediction, **others):
    return {"text": "a", "expected": expected, "prediction": prediction, **others}


def test_there_is_no_file(tmp_path):
    assert read_predictions(tmp_path / "predictions.jsonl") is None


def test_right_and_wrong_ones_by_confidence(read):
    found = read(
        row("😀", "😀", probability=0.9),
        row("😀", "<b>", probability=0.6),
        row("<b>", "😀", probability=0.8),
        row("<b>", "<b>", probability=0.5),
    )
    assert [one.confidence for one in found.wrong()] == [0.8, 0.6]
    assert [one.confidence for one in found.right()] == [0.5, 0.9]
    assert found.classes() == ["<b>", "😀"]
    assert found.confusion() == {
        ("😀", "😀"): 1,
        ("😀", "<b>"): 1,
        ("<b>", "😀"): 1,
        ("<b>", "<b>"): 1,
    }
    assert not found.has_base


def test_base_against_adapter(read):
    found = read(
        row("a", "a", base_prediction="b"),
        row("a", "a", base_prediction="a "),
        row("a", "b", base_prediction="a"),
        row(1, 1, base_prediction=None),
    )
    assert found.has_base
    assert found.base_table() == {(False, True): 2, (True, True): 1, (True, False): 1}


def test_answers_that_are_texts_have_no_confusion(read):
    assert read(*(row(f"text {n}", f"other {n}") for n in range(30))).classes() == []
    assert read().classes() == []


def test_all_other_values_are_the_input(read):
    (one,) = read({"premise": "<script>", "n": 3, "expected": ["B", "O"], "prediction": ["O"]}).all
    assert one.text == "premise: <script>\nn: 3"
    assert (one.expected, one.adapter, one.confidence) == ("B, O", "O", None)
    assert read(row("O", ["O"], predicted_words=["a"])).all[0].text == "a"
    assert read(row(True, "true", probability=True)).all[0].is_right


def test_damaged_lines_are_named(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"expected": 1, "prediction": 1}\n[]\n{"expected": 2}\n{"expected": 3, "pred')
    found = read_predictions(path)
    assert len(found.all) == 1
    assert f"{path}: line 2 is not" in found.problem
    path.unlink()
    path.mkdir()
    assert f"Cannot read {path}" in read_predictions(path).problem


def test_the_expected_answer_may_be_in_the_column_of_the_data(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"text": "x", "label": "a", "prediction": "a", "probability": 0.5}\n')
    (one,) = read_predictions(path, "label").all
    assert (one.text, one.expected, one.confidence) == ("x", "a", 0.5)
    assert read_predictions(path, "answer").all == ()


def test_labels_are_right_in_any_order_and_have_no_confusion(read):
    probability = {"a": 0.9, "b": 0.6}
    found = read(
        row(["b", "a"], ["a", "b"], probability=probability),
        row([], ["b"], base_prediction=["a", "b"], probability=probability),
    )
    assert [one.is_right for one in found.all] == [True, False]
    assert found.classes() == [] and not found.has_confidence
    tags = read({"tokens": ["x", "y"], "expected": ["B", "A"], "prediction": ["A", "B"]})
    assert not tags.all[0].is_right


def test_numbers_are_near_or_far(read):
    found = read(row(1, 1.5), row("2.0", 2.25), row(0.5, 3.5))
    assert found.are_numbers and found.classes() == []
    assert [one.off_by for one in found.farthest()] == [3.0, 0.5, 0.25]
    found = read(row(1, 1.5), row(1, float("nan")), row(0.5, 3.5))
    assert [one.adapter for one in found.farthest()] == ["nan", "3.5", "1.5"]
    assert read(row([1.0, 2.0], [1.5, 3.5])).all[0].off_by == 1.0
    assert not read(row("1.5", "1.5"), row("a", "b")).are_numbers
