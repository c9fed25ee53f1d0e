"""The `objective:` section: which task it trains, and which keys each type reads."""

import pytest

from lorakit.config import TaskType
from lorakit.errors import ConfigError
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.recipes.recipe import Recipe

VALUES = {"model": "m", "task": "CAUSAL_LM", "data": {"train": "a.csv"}, "output": "o"}


def recipe(objective, **changes):
    return Recipe.check({**VALUES, "objective": objective, **changes}, "the test")


def test_an_objective_names_its_task():
    assert ObjectiveConfig(type="reward").task is TaskType.SEQ_CLS
    assert ObjectiveConfig(type="kto").task is TaskType.CAUSAL_LM
    with pytest.raises(ConfigError, match=r"objective\.type is reward but task is CAUSAL_LM; set "):
        recipe({"type": "reward"})


def test_a_key_that_the_type_does_not_read_is_refused():
    with pytest.raises(ConfigError, match="loss belongs to dpo, but type is kto; leave loss out"):
        recipe({"type": "kto", "loss": "hinge"})


def test_a_recipe_with_an_objective_is_read_back(tmp_path):
    made = recipe({"type": "dpo", "beta": 0.2})
    (tmp_path / "recipe.yaml").write_text(made.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml") == made


def test_keys_of_supervised_training_are_refused():
    with pytest.raises(ConfigError, match=r"packing.*an `objective` has no use for it"):
        recipe({"type": "dpo"}, training={"packing": True})
