"""The examples of a planned step."""

import math

import pytest

from lorakit.planning import plan
from lorakit.planning.planned_examples import example_tokens


def test_a_config_alone_is_enough(config_dir, recipe):
    model = config_dir(num_hidden_layers=3)
    made = recipe(model=model, **{"data.train": "your/data", "data.max_length": 100})
    planned = plan(made)
    assert (planned.batch_rows, planned.batch_tokens) == (4, 100)
    assert planned.updates is None
    assert "100 tokens" in planned.notes[0]
    assert planned.trainable == 3 * 4 * (4 * (32 + 32) + 2 * (32 + 64) + (64 + 32))


def test_rows_are_counted_without_a_tokenizer(config_dir, recipe):
    planned = plan(recipe(model=config_dir(), **{"data.max_length": 50}))
    assert planned.batch_tokens == 50
    assert planned.updates == 3 * math.ceil(18 / 4)


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [(None, 3), (1, 3), ([-100, 5, 6], 3), ([5, 6], 5), ([5, 6, 7, 8], 7)],
    ids=["none", "a class", "of each token", "a shorter target", "a longer target"],
)
def test_the_tokens_of_an_example_are_those_of_its_input_and_of_a_target_beside_it(labels, tokens):
    assert example_tokens({"input_ids": [1, 2, 3], "labels": labels}) == tokens
