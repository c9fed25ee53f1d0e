"""Which training examples are behind an answer or a mistake."""

import shutil

import pytest
from sklearn.metrics import roc_auc_score

from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.training.influence import blame


@pytest.fixture(scope="module")
def mistakes(flipped):
    return blame(flipped.run)


def test_flipped_labels_are_in_the_first_tenth(flipped, mistakes):
    wrong = [row.index in flipped.indices for row in mistakes.rows]
    assert roc_auc_score(wrong, [row.share for row in mistakes.rows]) >= 0.85
    assert sum(wrong[: len(wrong) // 10]) >= 5  # of 6


def test_rows_have_their_place_and_their_columns(flipped, mistakes):
    lines = flipped.data.read_text().splitlines()
    assert len(mistakes.rows) == len(lines) == 120
    for row in mistakes.rows:
        assert row.line == row.number == row.index + 1
        assert f'"{row.values["text"]}"' in lines[row.line - 1]
    assert sum(abs(row.share) for row in mistakes.rows) == pytest.approx(1)
    assert mistakes.source == str(flipped.data) and mistakes.notes == ()
    assert "validation examples" in mistakes.about


def test_an_answer_is_supported_by_examples_of_its_label(flipped):
    found = blame(flipped.run, "the film was good 3", label="good")
    labels = [row.values["label"] for row in found.rows]
    assert labels[:20].count("good") >= 18 and labels[-20:].count("bad") >= 18
    other = blame(flipped.run, "the film was good 3", label="bad")
    assert [row.values["label"] for row in other.rows[:20]].count("bad") >= 18


def test_what_cannot_be_asked_is_refused(flipped, tmp_path):
    with pytest.raises(ConfigError, match="No such label in --label: got 'god', expected"):
        blame(flipped.run, "a", label="god")
    with pytest.raises(ConfigError, match="got a prompt or a run on pairs of texts"):
        blame(flipped.run, "a", prompt="b")
    with pytest.raises(ConfigError, match="got a prompt or a label without an answer"):
        blame(flipped.run, label="good")
    shutil.copytree(flipped.run / "adapter", tmp_path / "alone")
    with pytest.raises(MissingFileError, match=r"there is no recipe\.yaml beside it"):
        blame(tmp_path / "alone")


def test_a_language_model_is_asked_about_a_completion(done):
    run = done[0].run_dir
    with pytest.raises(ConfigError, match="because the examples are 'prompt_completion'"):
        blame(run, "blue")
    setup = blame(run).setup  # its mistakes are those with the largest loss
    example = setup.splits.train[0]
    found = blame(run, example["completion"], prompt=example["prompt"])
    place = [row.index for row in found.rows].index(0)
    assert place < len(found.rows) / 3 and found.rows[place].share > 0
    with pytest.raises(ConfigError, match="--label is for texts that are classified"):
        blame(run, "blue", label="x")


def test_examples_that_cannot_be_told_apart_are_refused(done, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(done[0].run_dir, run)
    file = run / "recipe.yaml"
    text = file.read_text()
    file.write_text(text.replace("max_length: null", "max_length: 8", 1))
    assert file.read_text() != text
    with pytest.raises(DataError, match="The training examples cannot be told apart: got "):
        blame(run)
