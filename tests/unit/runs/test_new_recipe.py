"""Recipes of new runs."""

import json

from lorakit.recipes.recipe import Recipe
from lorakit.runs.new_recipe import (
    config_file_of,
    free_name,
    positions_in,
    positions_of,
    recipe_like,
    write_recipe_for,
)
from lorakit.runs.recipe_form import check_text


def test_a_recipe_is_written_for_a_file_with_its_columns_and_task(tmp_path):
    path = tmp_path / "tickets.csv"
    lines = [f"It is {number} euros,{team}" for number, team in enumerate("abcabcab")]
    path.write_text("\n".join(["message,team", *lines]))
    written = write_recipe_for(
        str(path), None, model="some/base", path="recipes/tickets.yaml", output="runs/tickets"
    )
    assert (written.task, written.examples, written.columns) == ("SEQ_CLS", 8, ("message", "team"))
    assert any("3 classes" in note for note in written.notes)
    recipe = check_text(written.text, "recipe").recipe
    assert recipe is not None and recipe.model == "some/base" and recipe.output == "runs/tickets"
    assert (recipe.data.text, recipe.data.label) == ("message", "team")


def test_a_recipe_like_another_has_its_values_and_another_output():
    data = {"train": "a.csv", "label": "team"}
    recipe = Recipe.check(
        {
            **{"model": "m", "task": "SEQ_CLS", "output": "runs/a", "data": data},
            **{"lora": {"r": 4}, "training": {"seed": 1}},
        },
        "the test",
    )
    text = recipe_like(recipe, "runs/b")
    assert text.splitlines()[:3] == ["model: m", "task: SEQ_CLS", "output: runs/b"]
    assert "lora_alpha" not in text
    assert check_text(text, "r").recipe == recipe.model_copy(update={"output": "runs/b"})


def test_a_recipe_that_starts_from_an_adapter_keeps_what_it_gives():
    values = {"model": "m", "task": "SEQ_CLS", "output": "runs/a", "data": {"train": "a.csv"}}
    lora = {"r": 4, "lora_dropout": 0.0}  # a default, but perhaps not the adapter's
    recipe = Recipe.check({**values, "start_from": "runs/first", "lora": lora}, "the test")
    again = check_text(recipe_like(recipe, "runs/b"), "r").recipe
    assert again.start_from == "runs/first"
    assert again.lora.model_fields_set == {"r", "lora_dropout"}


def test_names_are_plain_and_not_taken(tmp_path):
    assert free_name("Ticket reviews (2).v1", tmp_path) == "ticket-reviews-2-v1"
    assert free_name("../💥", tmp_path) == "run"
    (tmp_path / "a.yaml").touch()
    (tmp_path / "a-2").mkdir()
    assert free_name("a", tmp_path) == "a-3"
    assert free_name("a", tmp_path / "missing") == "a"


def test_positions_are_read_from_the_configuration_alone(tmp_path):
    assert positions_of(None) is None and positions_of("not a name!") is None
    assert config_file_of("unknown-owner/unknown-model") is None
    (tmp_path / "config.json").write_text(json.dumps({"n_positions": 64}))
    assert positions_of(str(tmp_path)) == 64
    (tmp_path / "config.json").write_text("[]")
    assert positions_of(str(tmp_path)) is None
    roberta = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert positions_in(roberta) == 512
