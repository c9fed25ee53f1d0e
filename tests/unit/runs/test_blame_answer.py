"""The examples behind an answer or the mistakes as plain texts."""

import pytest

from lorakit.errors import ConfigError
from lorakit.runs import blame_answer
from lorakit.runs.blame_answer import blame_of
from lorakit.training.influence import Blame, Blamed


def test_the_mistakes_have_the_places_of_the_command_line(done, monkeypatch):
    said = []
    monkeypatch.setattr(blame_answer, "say", lambda *words: said.append(words))
    found = blame_of(done[0].run_dir, top=3)
    assert found.heading.startswith("The 3 examples that made the mistakes worst, of ")
    assert len(found.examples) == 3 and len(found.columns) == len(found.examples[0].values)
    file, _, line = found.examples[0].place.rpartition(":")
    with open(file, encoding="utf-8") as lines:
        assert found.examples[0].values[0] in lines.read().splitlines()[int(line) - 1]
    assert said[0] == ("Reading the run and its examples",)
    assert said[-1][0].startswith("Computing the gradients of ") and said[-1][1] == 1


def test_errors_are_the_sentences_of_the_command_line(done):
    with pytest.raises(ConfigError, match="--label is for texts that are classified"):
        blame_of(done[0].run_dir, "a fine film", label="none")


def test_long_columns_are_cut_and_lists_are_texts(monkeypatch, tmp_path):
    rows = (Blamed(0, 1.0, 1, None, {"text": "x" * 400, "tags": ["a", "b"]}),)
    found = Blame(rows, "rows.parquet", "Looking at the answer.", ("A note.",), None)
    monkeypatch.setattr("lorakit.training.influence.blame", lambda *args, **options: found)
    answer = blame_of(tmp_path, "an answer")
    assert answer.notes == ("Looking at the answer.", "A note.")
    (example,) = answer.examples
    assert example.place == "rows.parquet, example 1"
    assert example.values == ("x" * 299 + "…", '["a", "b"]')
