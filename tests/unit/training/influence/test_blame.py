"""Which training examples are behind an answer or a mistake."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lorakit.data import Place
from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.training import train
from lorakit.training.influence import Blame, Blamed, blame
from lorakit.training.influence.blame import _rank_examples, require_one_each


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


def test_each_of_several_files_is_named():
    files = ("a.jsonl", "b.parquet")
    numbers, lines, file_of = (np.array(each) for each in ((4, 2), (9, 0), (0, 1)))
    splits = SimpleNamespace(
        train=[{"text": "x"}, {"text": "y"}],
        training_place=lambda data: Place("all", numbers, lines, files, file_of),
    )
    setup = SimpleNamespace(splits=splits, recipe=SimpleNamespace(data=None))
    found = Blame(_rank_examples(torch.tensor([3.0, -1.0]), setup), "*", "", (), None)
    assert [found.place(row) for row in found.rows] == ["a.jsonl:9", "b.parquet, example 3"]


def test_the_share_of_the_gradients_rises_to_the_whole(mistakes, shares):
    assert shares == sorted(shares) and shares[0] == 1 / len(mistakes.rows) and shares[-1] == 1


def test_influences_the_other_way_are_explained():
    rows = tuple(Blamed(n, share, n + 1, None, {}) for n, share in enumerate((0.1, -0.2, -0.3)))
    found = Blame(rows, "rows.csv", "", (), None, is_about_mistakes=True)
    assert found.note_on_signs(1) == ()
    assert found.note_on_signs(2) == (
        "1 of 3 examples made the mistakes worse; those with an influence below 0 made them "
        "better.",
    )


def test_an_example_supports_its_label_and_speaks_against_the_other(flipped, mistakes):
    known = mistakes.rows[-1]
    text, label = known.values["text"], known.values["label"]
    shares = {
        asked: {row.index: row.share for row in blame(flipped.run, text, label=asked).rows}
        for asked in ("good", "bad")
    }
    assert shares[label][known.index] > 0
    # With two classes the gradients of the two losses point in opposite directions.
    for index, share in shares["good"].items():
        assert shares["bad"][index] == pytest.approx(-share, abs=1e-5)
    predicted = blame(flipped.run, text)
    assert {row.index: row.share for row in predicted.rows} in shares.values()


def test_what_cannot_be_asked_is_refused(flipped, tmp_path):
    with pytest.raises(ConfigError, match="No such label in --label: got 'god', expected"):
        blame(flipped.run, "a", label="god")
    with pytest.raises(ConfigError, match="got --prompt too, expected the text alone"):
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


def test_examples_that_cannot_be_told_apart_are_refused():
    setup = SimpleNamespace(
        encoded=SimpleNamespace(train=range(5)), splits=SimpleNamespace(train=range(7))
    )
    with pytest.raises(DataError) as caught:
        require_one_each(setup)
    assert str(caught.value) == (
        "The training examples cannot be told apart: got 5 encoded ones of 7, expected one for "
        "each. Remove the examples of which no token counts, or raise data.max_length."
    )


def test_preferences_and_several_labels_are_refused(
    recipe_of, tiny_distilbert_dir, jsonl, tmp_path
):
    rows = [{"text": f"film {n}", "label": ["good", "odd"][: n % 3]} for n in range(12)]
    made = recipe_of("SEQ_CLS", tiny_distilbert_dir, jsonl(rows))
    run = train(
        made.with_changes(
            {"training.max_steps": 1, "training.use_cpu": True, "output": str(tmp_path / "run")},
            "the test",
        )
    ).run_dir
    with pytest.raises(ConfigError, match="got labels of the kind multi_label"):
        blame(run)
    text = (run / "recipe.yaml").read_text()
    changed = text.replace("objective: null", "objective: {type: reward}")
    assert changed != text
    (run / "recipe.yaml").write_text(changed)
    with pytest.raises(ConfigError, match=r"got objective\.type=reward"):
        blame(run)
