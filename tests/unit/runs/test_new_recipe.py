"""Recipes of new runs."""

import json

import pytest

from lorakit.errors import ConfigError
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.template import recipe_text
from lorakit.recipes.yaml_edits import UNSET
from lorakit.runs.base_memory import config_file_of
from lorakit.runs.new_recipe import (
    free_name,
    free_output,
    positions_in,
    positions_of,
    recipe_like,
    recipe_path,
    with_settings,
    write_recipe_for,
)
from lorakit.runs.recipe_form import check_text, list_fields, with_field


def test_a_recipe_is_written_for_a_file_with_its_columns_and_task(tmp_path):
    path = tmp_path / "tickets.csv"
    lines = [f"It is {number} euros,{team}" for number, team in enumerate("abcabcab")]
    path.write_text("\n".join(["message,team", *lines]))
    written = write_recipe_for(
        str(path), None, model="some/base", path="recipes/tickets.yaml", output="runs/tickets"
    )
    assert (written.kind, written.columns) == ("SEQ_CLS", ("message", "team"))
    assert "8 examples with the columns message, team" in written.text
    assert any("3 classes" in note for note in written.notes)
    recipe = check_text(written.text, "recipe").recipe
    assert recipe is not None and recipe.model == "some/base" and recipe.output == "runs/tickets"
    assert (recipe.data.text, recipe.data.label) == ("message", "team")
    assert recipe.dtype == "auto"


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


@pytest.mark.parametrize(
    "features",
    [
        {"objective": {"type": "dpo", "beta": 0.3, "loss": "hinge"}},
        {
            "data": {
                "train": [
                    {"path": "a.csv", "weight": 2.0},
                    {"path": ["b.csv"], "columns": {"t": "x"}},
                ]
            }
        },
        {
            "task": "SEQ_CLS",
            "data": {"train": "a.csv", "label_separator": "|", "class_weights": "balanced"},
        },
        {"task": "SEQ_CLS", "data": {"train": "a.csv", "class_weights": {"spam": 3.0}}},
        {"frozen_part": {"cache_bytes": 0}, "evaluation": {"compare_with_base": False}},
        {"lora": {"layers_to_transform": [0, 1], "rank_pattern": {"q_proj": 16}}},
    ],
)
def test_a_recipe_with_every_feature_is_cloned_whole_and_shown_in_the_form(features):
    values = {"model": "m", "task": "CAUSAL_LM", "output": "runs/a", "data": {"train": "a.csv"}}
    recipe = Recipe.check(values | features, "the test")
    text = recipe_like(recipe, "runs/b")
    checked = check_text(text, "r")
    assert checked.recipe == recipe.model_copy(update={"output": "runs/b"})
    for field in list_fields(checked):  # a field changes itself alone
        if field.kind == "integer":
            changed = check_text(with_field(text, field, 5), "r")
            assert changed.value(field.key) == 5
            kept = check_text(with_field(with_field(text, field, 5), field, UNSET), "r").recipe
            before = check_text(with_field(text, field, UNSET), "r").recipe
            assert kept == before


def test_a_recipe_that_starts_from_an_adapter_keeps_what_it_gives():
    values = {"model": "m", "task": "SEQ_CLS", "output": "runs/a", "data": {"train": "a.csv"}}
    lora = {"r": 4, "lora_dropout": 0.0}  # a default, but perhaps not the adapter's
    recipe = Recipe.check({**values, "start_from": "runs/first", "lora": lora}, "the test")
    again = check_text(recipe_like(recipe, "runs/b"), "r").recipe
    assert again.start_from == "runs/first"
    assert again.lora.model_fields_set == {"r", "lora_dropout"}


def test_names_are_plain_and_not_taken(tmp_path):
    assert free_name("Ticket reviews (2).v1", tmp_path) == "ticket-reviews-2-v1"
    assert free_name("Rückmeldungen für Große", tmp_path) == "ruckmeldungen-fur-grosse"
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


def test_a_kind_that_does_not_fit_gets_a_recipe_to_mend_and_the_reason(tmp_path):
    path = tmp_path / "tickets.csv"
    path.write_text("\n".join(["message,team", *(f"It is {n},{'ab'[n % 2]}" for n in range(8))]))
    names = {"model": "some/base", "path": "recipes/t.yaml", "output": "runs/t"}
    written = write_recipe_for(str(path), "reward", **names)
    assert "No preferences for objective.type=reward" in written.problem
    assert written.columns == ("message", "team")
    recipe = check_text(written.text, "r").recipe
    assert (recipe.task, recipe.objective.type) == ("SEQ_CLS", "reward")
    with pytest.raises(ConfigError, match="cannot be inferred"):
        write_recipe_for(str(written_odd(tmp_path)), None, **names)


def written_odd(folder):
    path = folder / "odd.jsonl"
    path.write_text('{"a": 1, "b": [1]}\n' * 4)
    return path


def test_settings_of_another_recipe_are_taken_but_not_its_data():
    text = recipe_text("SEQ_CLS", "r.yaml", "runs/a", "m", "a.csv")
    lora = {"r": 3, "use_rslora": True}
    other = {"model": "n", "task": "SEQ_CLS", "output": "runs/b", "lora": lora}
    other |= {"data": {"train": "b.csv", "label": "kind"}, "quantization": {"bits": 4}}
    made = with_settings(text, other)
    values = check_text(made, "r").values
    assert (values["model"], values["data"]) == ("m", check_text(text, "r").values["data"])
    assert (values["lora"], values["quantization"]) == (lora, {"bits": 4})
    assert "training" not in values and "# rank of the update" in made


def test_a_run_goes_into_runs_unless_the_folder_is_that(tmp_path):
    assert free_output(tmp_path, "data/My tickets.csv") == "runs/my-tickets"
    (tmp_path / "runs" / "my-tickets").mkdir(parents=True)
    assert free_output(tmp_path, "data/My tickets.csv") == "runs/my-tickets-2"
    assert free_output(tmp_path / "runs", "My tickets.csv") == "my-tickets-2"


def test_a_recipe_has_the_name_of_its_run(tmp_path):
    assert recipe_path(tmp_path, "runs/a") == "recipes/a.yaml"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.yaml").touch()
    assert recipe_path(tmp_path, "runs/a") == "recipes/a-2.yaml"
