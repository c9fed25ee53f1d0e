"""What a run that starts from an adapter trains: the adapter's settings and the recipe's."""

import pytest

from lorakit.config import LoraConfig
from lorakit.errors import ConfigError
from lorakit.recipes.recipe import Recipe
from lorakit.training.starting_point.config_to_train import config_to_train
from tiny_models.adapters import layered_adapter

PARENT = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ("q_proj", "v_proj"),
    "task_type": "CAUSAL_LM",
    "lora_dropout": 0.1,
}


def taken(lora, **parent):
    adapter = layered_adapter(**{**PARENT, **parent})
    recipe = Recipe(
        model="m",
        task="CAUSAL_LM",
        start_from="runs/a",
        data={"train": "x"},
        lora=lora,
        output="o",
    )
    return config_to_train(recipe, adapter)


def test_without_keys_it_is_the_adapters():
    config, selection = taken({})
    assert config == LoraConfig(**PARENT) and selection == {}


def test_a_resolved_section_gives_itself():
    config, _ = taken({"r": 6, "lora_dropout": 0.3})
    assert taken(config.model_dump(exclude={"task_type"})) == (config, {})


def test_another_rank_keeps_the_scalings_and_drops_the_pattern():
    config, _ = taken({"r": 2}, rank_pattern={}, alpha_pattern={"v_proj": 4})
    assert (config.r, config.rank_pattern) == (2, {})
    assert config.scaling_for("model.layers.0.attn.q_proj") == 2
    assert config.scaling_for("model.layers.0.attn.v_proj") == 1
    config, _ = taken({"r": 2}, use_rslora=True)
    assert config.scaling_for("model.layers.0.attn.q_proj") == 4


def test_a_pattern_that_the_recipe_gives_counts_though_it_is_the_adapters():
    config, _ = taken({"r": 2, "rank_pattern": {"v_proj": 3}}, rank_pattern={"v_proj": 3})
    assert (config.r, config.rank_pattern) == (2, {"v_proj": 3})
    pattern = {"v_proj": 3}
    config, _ = taken({"lora_alpha": 2, "alpha_pattern": pattern}, alpha_pattern=pattern)
    assert (config.lora_alpha, config.alpha_pattern) == (2, pattern)


def test_a_resolved_section_with_the_adapters_pattern_gives_itself():
    parent = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3}}
    config, _ = taken({"r": 2}, **parent)
    assert (config.lora_alpha, config.alpha_pattern) == (4, parent["alpha_pattern"])
    assert taken(config.model_dump(exclude={"task_type"}), **parent) == (config, {})


def test_a_scaling_that_is_given_counts():
    config, _ = taken({"r": 2, "lora_alpha": 16})
    assert config.scaling_for("model.layers.0.attn.q_proj") == 8
    config, _ = taken({"lora_alpha": 16}, alpha_pattern={"v_proj": 4})
    assert config.alpha_pattern == {}


def test_keys_that_select_are_compared_on_the_base():
    _, selection = taken({"target_modules": "all-linear", "bias": "none", "modules_to_save": ["x"]})
    assert selection == {"target_modules": "all-linear", "modules_to_save": ("x",)}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_dora": True}, "got lora.use_dora=True, expected use_dora=False as in the adapter"),
        ({"enable_lora": {"c": [True, False]}}, "got lora.enable_lora="),
        (
            {"init_lora_weights": "pissa"},
            "got lora.init_lora_weights='pissa', expected init_lora_weights=True",
        ),
    ],
)
def test_keys_that_contradict_are_named(lora, message):
    with pytest.raises(ConfigError) as caught:
        taken(lora)
    text = "The recipe contradicts the adapter of start_from 'runs/a': "
    assert text in str(caught.value) and message in str(caught.value)
