"""Validation examples that are also training examples."""

import pytest
from datasets import Dataset

from fixtures.data import LABELLED, write_examples
from lorakit.data import load_splits
from lorakit.data.overlap import overlap_note
from lorakit.recipes.recipe import DataConfig


def test_validation_examples_that_are_trained_on_are_reported(tmp_path):
    train = write_examples(tmp_path / "a.csv", LABELLED)
    copied = write_examples(tmp_path / "b.jsonl", LABELLED)
    some = write_examples(tmp_path / "c.jsonl", [*LABELLED[:3], {"text": "new", "label": "a"}])
    other = write_examples(tmp_path / "d.jsonl", [{"text": "new", "label": "a"}])

    def notes(validation):
        return load_splits(DataConfig(train=train, validation=validation), 0).notes

    both = "All 20 validation examples are also training examples, so the metrics say little "
    assert notes(train) == notes(copied) == (both + "about new ones.",)
    assert notes(some)[0].startswith("3 of 4 validation examples are also training examples")
    assert notes(other) == ()


def test_repeated_examples_that_are_held_out_and_trained_on_are_reported(tmp_path):
    repeated = write_examples(tmp_path / "a.csv", LABELLED * 2)
    once = write_examples(tmp_path / "b.csv", LABELLED)

    def notes(train):
        return load_splits(DataConfig(train=train, validation_fraction=0.25), 0).notes

    assert len(notes(once)) == 1
    held_out, overlap = notes(repeated)
    assert held_out.startswith("10 of 40 training examples were taken for validation")
    assert "validation examples are also training examples, as the data repeats them" in overlap


@pytest.mark.parametrize("columns", [{}, {"data.text": "text", "data.label": "label"}])
def test_numbers_of_examples_hide_no_repetition(tmp_path, columns):
    rows = [{"id": at, **row} for at, row in enumerate(LABELLED * 2)]
    data = DataConfig(train=write_examples(tmp_path / "a.csv", rows), validation_fraction=0.25)

    notes = load_splits(data, 0, columns=columns).notes

    assert "validation examples are also training examples" in notes[1]


def test_columns_of_both_are_compared_whatever_they_hold():
    tools = [{"name": "f", "arguments": {"n": 1, "to": [1, 2]}}]
    train = Dataset.from_list([{"a": "x", "tools": tools, "id": 1}])
    same = Dataset.from_list([{"tools": tools, "a": "x"}])
    other = Dataset.from_list([{"a": "x", "tools": [{**tools[0], "name": "g"}]}])

    assert overlap_note(train, same)[0].startswith("All 1 validation examples are also")
    assert overlap_note(train, other) == []
    assert overlap_note(train, Dataset.from_list([{"b": "x"}])) == []
