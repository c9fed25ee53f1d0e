"""The `training:` section of a recipe: its keys, and what they may hold.

Nothing heavy is imported here, so that a wrong key is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, Field, ValidationError, create_model

from lorakit.config import StrictConfig, TaskType
from lorakit.config.problems import config_error
from lorakit.recipes.argument_fields import ObjectOfCode, argument_hints, optimizer_names
from lorakit.recipes.argument_ranges import in_range

LORA_PLUS_KEY = "lora_plus_ratio"
"""What the learning rate is multiplied by for lora_B."""

OPTIMIZER_NAME = "memory_mapped_adamw"
"""lorakit's own, as `training.optim` has it."""

EARLY_STOPPING_KEYS = ("early_stopping_patience", "early_stopping_threshold")

_HUB = "lorakit uploads nothing; upload the run's adapter directory when it is done"
_PARALLEL = "lorakit trains in parallel by DDP and by FSDP2 (`fsdp: true`); leave it out"
OWNED_KEYS: dict[str, str] = {
    "output_dir": "the run directory is set by `output` at the top level",
    "logging_dir": "TensorBoard's files go to `tensorboard` in the run directory",
    "disable_tqdm": "the command line draws the progress",
    "remove_unused_columns": "the examples hold just what the model takes",
    "resume_from_checkpoint": "resume with `--resume`",
    "restore_callback_states_from_checkpoint": "a resumed run always goes on where it stopped",
    "save_only_model": "a checkpoint without the optimizer could not be resumed",
    "logging_nan_inf_filter": "a loss that is not a number stops the run",
    "do_train": "`lorakit train` trains",
    "do_eval": "set `eval_strategy`",
    "do_predict": "predict with `lorakit generate`",
    "push_to_hub": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "deepspeed": _PARALLEL,
    "parallelism_config": _PARALLEL,
    "local_rank": "the launcher (torchrun, accelerate launch) numbers the processes",
    # of TRL's SFTConfig
    "max_length": "set `data.max_length`",
    "dataset_text_field": "set `data.text`",
    "dataset_kwargs": "lorakit prepares the examples; see `data`",
    "pad_token": "save the tokenizer with a pad token and name it in `model`",
    "model_init_kwargs": "set `dtype`, `revision` or `trust_remote_code` at the top level",
    "trust_remote_code": "set `trust_remote_code` at the top level",
}


def checked_training(
    recipe_class: type[StrictConfig], values: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return the `training:` section of a recipe's mapping with every value in its own type.

    The whole mapping is validated with it, so that every problem of a recipe is told at once.

    Args:
        recipe_class: The class the mapping is for.
        values: The mapping; its `task` must be a known one.
        where: What to call its origin in an error.

    Raises:
        ConfigError: Lists every problem of the mapping.
    """
    section = training_section(TaskType(values["task"]))
    whole = create_model("Recipe", __base__=recipe_class, training=(section, section()))
    try:
        checked: Any = whole.model_validate(values)
    except ValidationError as error:
        raise config_error(error, whole, where) from None
    return checked.training.model_dump(mode="json", exclude_unset=True)


@cache
def training_section(task_type: TaskType) -> type[StrictConfig]:
    """Make the config class whose fields are those of the task's arguments class, and our own."""
    hints = argument_hints(task_type)
    fields: dict[str, Any] = {
        name: (in_range(name, _narrowed(hint)), None)
        for name, hint in hints.items()
        if not name.startswith("_")
    }
    optimizers = (OPTIMIZER_NAME, *optimizer_names())
    fields["optim"] = (Literal[optimizers], None)
    fields["fsdp"] = (bool | None, None)  # the older list of words is on its way out
    fields["fsdp_config"] = (dict[str, Any] | None, None)
    for name, kind, bound in (
        ("early_stopping_patience", int, Field(ge=1)),
        ("early_stopping_threshold", float, Field(ge=0)),
        (LORA_PLUS_KEY, float, Field(gt=0)),
    ):
        fields[name] = (Annotated[in_range(name, kind), bound], None)
    for name, reason in OWNED_KEYS.items():
        fields[name] = (Annotated[Any, BeforeValidator(_refusal(reason))], None)
    # Left-out keys stay left out: their defaults are the arguments class's own and not ours.
    config = {**StrictConfig.model_config, "validate_default": False}
    base = type("Section", (StrictConfig,), {"model_config": config, "__module__": __name__})
    return create_model("TrainingSection", __base__=base, **fields)


def _narrowed(hint: Any) -> Any:
    """Drop from a union what YAML cannot say, and `str` beside an enumeration.

    transformers writes `SchedulerType | str`, but only the enumeration's values are right.
    """
    if get_origin(hint) not in (Union, UnionType):
        return hint
    parts = [part for part in get_args(hint) if not _is_object_of_code(part)]
    if any(_is_enumeration(part) for part in parts):
        parts.remove(str)
    return Union[tuple(parts)]  # noqa: UP007 (the parts are known at run time only)


def _is_enumeration(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, Enum)


def _is_object_of_code(part: Any) -> bool:
    return part is ObjectOfCode


def _refusal(reason: str) -> Callable[[Any], Any]:
    def refuse(value: Any) -> Any:
        raise ValueError(f"this is lorakit's own to set: {reason}")

    return refuse
