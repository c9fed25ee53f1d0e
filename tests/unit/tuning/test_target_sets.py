"""Sets of a model's own matrices: what they are called, and that they select just these."""

import pytest

import tiny_models
from lorakit.errors import ConfigError
from lorakit.injection import add_adapter
from lorakit.recipes.search_sections import SearchConfig
from lorakit.training import Recipe
from lorakit.training.preview import dry_run
from lorakit.tuning.space import Space, default_space
from lorakit.tuning.target_sets import (
    Matrix,
    given_target_sets,
    model_target_sets,
    names_of,
    sets_at_depths,
)

MODELS = {
    "distilbert": (tiny_models.distilbert, "SEQ_CLS"),
    "bert": (tiny_models.bert, "TOKEN_CLS"),
    "roberta": (tiny_models.roberta, "SEQ_CLS"),
    "llama": (tiny_models.llama, "CAUSAL_LM"),
    "gpt2": (tiny_models.gpt2, "CAUSAL_LM"),
    "bloom": (tiny_models.bloom, "CAUSAL_LM"),
    "t5": (tiny_models.t5, "SEQ_2_SEQ_LM"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_each_set_selects_its_matrices_and_no_other(kind, tmp_path):
    build, task = MODELS[kind]
    build().save_pretrained(tmp_path)
    data = {"train": "rows.csv"}
    recipe = Recipe(model=str(tmp_path), task=task, data=data, output="unused")
    sets = {target_set.label: target_set for target_set in model_target_sets(recipe)}
    assert {"attention", "MLP", "all"} <= set(sets)
    paths = {}
    for label, target_set in sets.items():
        config = recipe.lora.model_copy(
            update={"target_modules": target_set.target_modules, "task_type": task, "r": 1}
        )
        injection = add_adapter(build(), config)
        paths[label] = {match.path for match in injection.matches}
        assert target_set.parameters_per_rank == injection.lora_parameters, "at rank 1"
    assert paths["attention"] | paths["MLP"] == paths["all"]
    assert not paths["attention"] & paths["MLP"]
    if "query, value" in sets:
        assert paths["query, value"] < paths["attention"]


def test_query_and_value_are_known_by_their_names(tmp_path):
    tiny_models.llama().save_pretrained(tmp_path)
    recipe = Recipe(model=str(tmp_path), task="CAUSAL_LM", data={"train": "x"}, output="unused")
    assert model_target_sets(recipe)[0].target_modules == ("q_proj", "v_proj")


def test_sets_of_the_recipe_are_measured(tmp_path):
    tiny_models.llama(num_hidden_layers=3).save_pretrained(tmp_path)
    recipe = Recipe(model=str(tmp_path), task="CAUSAL_LM", data={"train": "x"}, output="unused")
    (only,) = given_target_sets(recipe, [("q_proj",)])
    assert (only.label, only.parameters_per_rank) == ("q_proj", 3 * (16 + 16))


def test_endings_that_others_share_are_lengthened():
    places = ("h.*.attn.c_proj", "h.*.mlp.c_proj", "h.*.mlp.c_fc")
    attention, down, up = (Matrix(place, 1) for place in places)
    assert names_of([down, up], [attention, down, up]) == ("mlp.c_proj", "c_fc")


def test_a_recipe_that_starts_from_an_adapter_has_the_set_of_the_adapter(done, recipe):
    made = recipe("second", lora={}, start_from=str(done[0].run_dir))
    (only,) = model_target_sets(made)
    assert only.target_modules == ("q_proj", "v_proj")
    assert 2 * only.parameters_per_rank == done[0].injection.lora_parameters
    Space(default_space([only]), "the default").check(made, SearchConfig())
    values = {
        "lora.r": 4,
        "lora.lora_alpha": 4,
        "lora.target_modules": ["q_proj", "v_proj"],
        "lora.lora_dropout": 0.2,
    }
    trial = dry_run(made.with_changes(values, "a trial"))
    assert {(match.r, match.scaling) for match in trial.injection.matches} == {(4, 1)}


DEPTHS = ("all", "upper half", "upper quarter")


def saved(model, folder, task="CAUSAL_LM", **values):
    model.save_pretrained(folder)
    return Recipe(model=str(folder), task=task, data={"train": "x"}, output="unused", **values)


def test_sets_of_the_upper_layers_have_their_share_of_the_parameters(tmp_path):
    recipe = saved(tiny_models.llama(num_hidden_layers=4), tmp_path)
    whole, half, quarter = sets_at_depths(recipe, [["q_proj"]], DEPTHS)
    labels = [one.label for one in (whole, half, quarter)]
    assert labels == ["q_proj; all layers", "q_proj; upper half", "q_proj; upper quarter"]
    assert [one.layers for one in (whole, half, quarter)] == [None, (2, 3), (3,)]
    sizes = [one.parameters_per_rank for one in (whole, half, quarter)]
    assert sizes[0] == 2 * sizes[1] == 4 * sizes[2]


def test_depths_that_are_the_same_layers_are_one(tmp_path):
    sets = sets_at_depths(saved(tiny_models.llama(), tmp_path), None, DEPTHS)
    labels = [one.label for one in sets if one.label.startswith("MLP")]
    assert labels == ["MLP; all layers", "MLP; upper half"]


def test_depths_of_a_recipe_that_names_layers_are_refused(tmp_path):
    recipe = saved(tiny_models.llama(), tmp_path, lora={"layers_to_transform": (1,)})
    with pytest.raises(ConfigError, match=r"got lora\.layers_to_transform, which chooses them too"):
        sets_at_depths(recipe, None, DEPTHS)


def test_depths_of_an_encoder_with_a_decoder_are_refused(tmp_path):
    recipe = saved(tiny_models.t5(), tmp_path, "SEQ_2_SEQ_LM")
    with pytest.raises(ConfigError, match=r"encoder\.block, decoder\.block, expected one\. Leave"):
        sets_at_depths(recipe, None, DEPTHS)
