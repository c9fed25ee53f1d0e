"""The `training:` section: keys of the task, keys that lorakit sets, and values out of range."""

import pytest
from transformers import TrainingArguments

from lorakit.config import TaskType
from lorakit.errors import ConfigError
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.training_section import OWNED_KEYS, training_section


def check(values, task="SEQ_CLS"):
    """Return the section of a recipe after validation."""
    whole = {"model": "m", "task": task, "data": {"train": "a"}, "output": "o", "training": values}
    return Recipe.check(whole, "the recipe").training


def test_each_task_knows_its_fields():
    assert check({"packing": True}, "CAUSAL_LM") == {"packing": True}
    assert check({"generation_num_beams": 2}, "SEQ_2_SEQ_LM") == {"generation_num_beams": 2}
    with pytest.raises(ConfigError, match=r"unknown key 'training\.packing'"):
        check({"packing": True})


def test_values_get_their_declared_types_and_omitted_keys_stay_omitted():
    checked = check({"learning_rate": "1e-3", "max_steps": 3.0, "optim": "memory_mapped_adamw"})
    assert checked == {"learning_rate": 1e-3, "max_steps": 3, "optim": "memory_mapped_adamw"}


@pytest.mark.parametrize("task", list(TaskType))
def test_a_key_that_lorakit_sets_is_refused_with_the_reason(task):
    for key, reason in OWNED_KEYS.items():
        assert key in training_section(task).model_fields
        with pytest.raises(ConfigError) as caught:
            check({key: "x"}, task)
        assert f"training.{key}: got 'x'; lorakit sets this: {reason}" in str(caught.value)
    fields = TrainingArguments.__dataclass_fields__
    assert {"output_dir", "push_to_hub", "deepspeed"} <= OWNED_KEYS.keys() & fields.keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 1.5}, "training.max_steps: got 1.5; input should be a valid int"),
        ({"learning_rate": -1}, "learning_rate: got -1; input should be greater than 0"),
        (["learning_rate"], "training: got ['learning_rate']; input should be a section"),
        ({"lora_plus_ratio": 0}, "lora_plus_ratio: got 0; input should be greater than 0"),
        ({"early_stopping_patience": 0}, "input should be greater than or equal to 1"),
        ({"optim": "adamv"}, "training.optim: got 'adamv'; input should be "),
        (
            {"train_sampling_strategy": "like_length"},
            "training.train_sampling_strategy: got 'like_length'; input should be 'random', ",
        ),
        ({"train_sampling_strategy": "batch_rebalance"}, "input should be 'random', "),
        ({"lr_scheduler_type": "cosin"}, "input should be 'linear'"),
        (
            {"accelerator_config": {"even_batches": False, "split_batches": True}},
            "lorakit gives the examples to the processes: leave out even_batches and split_batches",
        ),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ConfigError) as caught:
        check(values)
    assert message in str(caught.value)
