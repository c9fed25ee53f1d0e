"""The templates behind `lorakit init`."""

import re

import pytest
import yaml

from lorakit.config import TaskType
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.template import OBJECTIVES, TASKS, recipe_text, task_template


def test_there_is_a_template_for_every_task():
    assert set(TASKS) == {task.value for task in TaskType}


@pytest.mark.parametrize("task", TASKS)
def test_the_recipe_stays_valid_with_every_commented_key_set(task, tmp_path):
    text = recipe_text(task, "recipe.yaml", "runs/recipe")
    everything = re.sub(r"(?m)^( *)# (\w+: .*  # )", r"\1\2", text)
    assert len(everything.splitlines()) == len(text.splitlines())
    assert "\n  # " not in everything.replace(f"  # {task_template(task).examples}", "")
    # The example of one base's subset and revision cannot be looked up offline, only validated.
    path = tmp_path / "recipe.yaml"
    path.write_text(everything)
    assert Recipe.load(path).lora.use_rslora


def test_values_are_quoted_and_the_length_is_kept_to_the_models_positions():
    keys = {"text": "a\n# b: c", "label": "yes"}
    text = recipe_text(
        "SEQ_CLS", "a.yaml", "runs/a", "./m: n", "#1.csv", 16, keys, about="9 examples."
    )
    values = yaml.safe_load(text)
    assert (values["model"], values["data"]["train"]) == ("./m: n", "#1.csv")
    assert values["data"]["max_length"] == 16 and keys.items() <= values["data"].items()
    assert "9 examples." in text and task_template("SEQ_CLS").examples not in text


def test_comments_of_adjacent_keys_stand_in_one_column():
    lines = recipe_text("CAUSAL_LM", "a.yaml", "runs/a").splitlines()
    first, second = (
        next(line for line in lines if line.startswith(k)) for k in ("model:", "task:")
    )
    assert first.index("  # ") == second.index("  # ")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_has_a_valid_recipe(objective):
    text = recipe_text(OBJECTIVES[objective], "r.yaml", "runs/r", objective=objective)
    everything = re.sub(r"(?m)^( *)# (?=\w+: )", r"\1", text)
    for written in (text, everything):
        values = yaml.safe_load(written)
        assert values["objective"]["type"] == objective and values["task"] == OBJECTIVES[objective]
    assert Recipe.check(yaml.safe_load(text), "the template").objective.type == objective
