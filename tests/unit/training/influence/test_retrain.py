"""A run without its worst examples, beside the run with them."""

import json

import pytest
from datasets import load_from_disk

from lorakit.errors import ConfigError, OutputExistsError
from lorakit.training.influence import retrain_without


def test_the_run_is_trained_without_the_worst_and_measured_on_the_same_examples(flipped, mistakes):
    made = retrain_without(flipped.run, mistakes, 6)
    assert made.result.run_dir.name == "run-without-6"
    data = load_from_disk(str(made.data))
    assert (len(data["train"]), len(data["validation"])) == (114, 40)
    dropped = [row.values for row in mistakes.rows[:6]]
    rows = [json.loads(line) for line in flipped.data.read_text().splitlines()]
    assert [row for row in rows if row not in dropped] == list(data["train"])
    assert made.before.keys() == made.after.keys()
    assert made.after["eval_loss"] < made.before["eval_loss"]
    with pytest.raises(
        OutputExistsError, match=r"Cannot train without 6 examples: got .*-without-6"
    ):
        retrain_without(flipped.run, mistakes, 6)


def test_some_examples_must_be_left(flipped, mistakes):
    with pytest.raises(ConfigError, match="No examples would be left: got --drop 120 of 120"):
        retrain_without(flipped.run, mistakes, 120)
