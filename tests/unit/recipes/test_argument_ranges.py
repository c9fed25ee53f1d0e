"""Every number under `training:` has bounds, and the libraries' defaults are within them."""

from typing import get_args, get_type_hints

import pytest

from lorakit.config import TaskType
from lorakit.errors import ConfigError
from lorakit.recipes.argument_ranges import RANGES
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.training_section import OWNED_KEYS
from lorakit.training.tasks import task_for

NUMBERS = sorted(
    {
        name
        for task in TaskType
        for name, hint in get_type_hints(task_for(task).arguments_class()).items()
        if {int, float} & {hint, *get_args(hint)} and bool not in get_args(hint)
    }
    - OWNED_KEYS.keys()
    | {"early_stopping_patience", "early_stopping_threshold", "lora_plus_ratio"}
)


def check(task, name, value):
    values = {"model": "m", "task": task, "data": {"train": "a"}, "output": "o"}
    return Recipe.check({**values, "training": {name: value}}, "the recipe").training[name]


def tasks_with(name):
    classes = {task: task_for(task).arguments_class() for task in TaskType}
    found = [task for task, made in classes.items() if name in get_type_hints(made)]
    return found or list(TaskType)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_checked_before_anything_starts(name):
    task = tasks_with(name)[0]
    wrong = [True, False, -1e30, -7, float("nan"), float("inf"), -float("inf"), "abc", [1], {}]
    for value in wrong:
        if name == "pad_to_multiple_of" and isinstance(value, str):
            continue
        with pytest.raises(ConfigError, match=f"training.{name}: ") as caught:
            check(task, name, value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("adam_beta1", 2),
        ("adam_beta2", 1.0),
        ("adam_epsilon", 0),
        ("label_smoothing_factor", 5),
        ("seed", 2**63),
        ("data_seed", 2**32),
        ("per_device_train_batch_size", 10**30),
        ("gradient_accumulation_steps", 10**30),
        ("max_steps", 0),
        ("max_steps", 10**30),
        ("num_train_epochs", 1e30),
        ("dataloader_num_workers", 10**9),
        ("num_train_epochs", 10**400),
        ("learning_rate", 10**400),
    ],
)
def test_numbers_beyond_their_bounds(name, value):
    with pytest.raises(ConfigError, match=f"training.{name}: got .*(should be|expected)"):
        check("SEQ_CLS", name, value)


def test_every_number_has_its_bounds():
    others = {"early_stopping_patience", "early_stopping_threshold", "lora_plus_ratio"}
    assert set(NUMBERS) - others == {*RANGES, "pad_to_multiple_of"}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_default_of_every_number_is_in_its_bounds(name):
    for task in tasks_with(name):
        default = getattr(task_for(task).arguments_class(), name, None)
        if default is not None and name not in {"logging_steps"}:
            assert check(task, name, default) == default
