"""Labels and numbers to predict are recognized in columns of any name."""

import pytest

from fixtures.layouts import write_data
from lorakit.config import TaskType
from lorakit.training.recognition import recognize


@pytest.mark.parametrize("separator", ["|", "; ", ","])
def test_several_labels_in_one_text_are_recognized(tmp_path, separator):
    kinds = ["post", "bill", separator.join(["post", "bill"]), separator.join(["bill", "praise"])]
    rows = [{"text": f"text {n}", "Themen": kinds[n % 4]} for n in range(40)]
    found = recognize(str(write_data(tmp_path, "t.jsonl", rows)), None, None)
    assert found.task is TaskType.SEQ_CLS
    assert found.columns["label_separator"] == separator.strip()
    assert (
        "The labels are lists, with 3 different labels in 'Themen': bill, post, praise."
        in found.notes
    )
    assert any("Leave that out if each text is one class." in note for note in found.notes)


def test_a_comma_in_a_name_separates_nothing(tmp_path):
    rows = [{"text": f"text {n}", "label": ["Rome, Italy", "Bern, Alps"][n % 2]} for n in range(9)]
    found = recognize(str(write_data(tmp_path, "t.jsonl", rows)), None, None)
    assert found.columns == {"text": "text", "label": "label"}


def test_lists_and_numbers_of_any_name_are_labels(tmp_path):
    rows = [{"text": f"text {n}", "themen": [["a"], ["a", "b"], []][n % 3]} for n in range(12)]
    found = recognize(str(write_data(tmp_path, "lists.jsonl", rows)), None, None)
    assert found.columns == {"text": "text", "label": "themen"}
    lines = "".join(f"ein Text {n},{n / 7:.2f}\n" for n in range(20))
    path = write_data(tmp_path, "numbers.csv", f"text,note\n{lines}")
    assert recognize(str(path), None, None).columns == {"text": "text", "label": "note"}


def test_numbers_of_any_name_beside_other_columns_are_facts(tmp_path):
    rows = [{"id": n, "text": f"text {n}", "seconds": n / 7} for n in range(20)]
    path = str(write_data(tmp_path, "t.jsonl", rows))
    assert recognize(path, None, None).task is TaskType.CAUSAL_LM
    assert recognize(path, TaskType.SEQ_CLS, None).columns["label"] == "seconds"
    rated = [{"id": n, "text": f"text {n}", "score": n / 7} for n in range(20)]
    path = str(write_data(tmp_path, "rated.jsonl", rated))
    assert recognize(path, None, None).task is TaskType.SEQ_CLS
