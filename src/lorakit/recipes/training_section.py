"""Validation of the `training:` section of a recipe.

Nothing heavy is imported, so a wrong key is reported immediately.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, create_model

from lorakit.config import StrictConfig, TaskType
from lorakit.config.problems import config_error
from lorakit.recipes.argument_fields import NotInYaml, argument_hints, optimizer_names
from lorakit.recipes.argument_ranges import with_bounds

LORA_PLUS_KEY = "lora_plus_ratio"
"""Factor of the learning rate of lora_B."""

OPTIMIZER_NAME = "memory_mapped_adamw"
"""Value of `training.optim` for lorakit's optimizer."""

_SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length")
"""The Trainer takes any other word for "random", in silence. Its "batch_rebalance" has one order
for all seeds, and repeats examples where an epoch ends with a short step."""

_DEALING_KEYS = ("dispatch_batches", "even_batches", "split_batches")
"""Keys of `accelerator_config` that say which examples a process gets."""

EARLY_STOPPING_KEYS = ("early_stopping_patience", "early_stopping_threshold")

_HUB = "lorakit uploads nothing; upload the adapter directory of the finished run"
_PARALLEL = (
    "lorakit trains in parallel by averaging the gradients of processes and by FSDP2 "
    "(`fsdp: true`); leave it out"
)
_WHOLE_EVALUATION = "metrics are computed from the predictions of a whole evaluation"
OWNED_KEYS: dict[str, str] = {
    "output_dir": "the run directory is set by `output` at the top level",
    "logging_dir": "TensorBoard's files go to `tensorboard` in the run directory",
    "disable_tqdm": "the command line draws the progress",
    "remove_unused_columns": "the examples hold exactly what the model takes",
    "resume_from_checkpoint": "resume with `--resume`",
    "restore_callback_states_from_checkpoint": "a resumed run always continues where it stopped",
    "save_only_model": "a run cannot be resumed from a checkpoint without the optimizer",
    "batch_eval_metrics": _WHOLE_EVALUATION,
    "eval_do_concat_batches": _WHOLE_EVALUATION,
    "eval_use_gather_object": _WHOLE_EVALUATION,
    "logging_nan_inf_filter": "a loss that is not a number stops the run",
    "do_train": "`lorakit train` trains",
    "do_eval": "set `eval_strategy`",
    "do_predict": "predict with `lorakit predict`",
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
    # Fields of TRL's SFTConfig:
    "max_length": "set `data.max_length`",
    "dataset_text_field": "set `data.text`",
    "dataset_kwargs": "lorakit prepares the examples; see `data`",
    "pad_token": "save the tokenizer with a pad token and name it in `model`",
    "model_init_kwargs": "set `dtype`, `revision` or `trust_remote_code` at the top level",
    "trust_remote_code": "set `trust_remote_code` at the top level",
}

_NO_RIGHT_ANSWER = "an `objective` has no use for it"
_SUPERVISED_KEYS = (
    *("assistant_only_loss", "completion_only_loss", "label_smoothing_factor", "loss_type"),
    *("eval_packing", "packing", "packing_strategy", "padding_free"),
    *("neftune_noise_alpha", "activation_offloading", "shuffle_dataset", "dataset_num_proc"),
)
"""Keys that only training on right answers reads."""


def validate_training_section(
    recipe_class: type[Any], values: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return the `training:` section of a recipe's mapping with every value in its declared type.

    The whole mapping is validated, so that all problems of a recipe are reported together.

    Args:
        recipe_class: The recipe class to validate against.
        values: The mapping; its `task` must be known.
        where: Its origin for error messages.

    Raises:
        ConfigError: Lists every problem of the mapping.
    """
    whole = _whole(recipe_class, TaskType(values["task"]), values.get("objective") is not None)
    try:
        checked: Any = whole.model_validate(values)
    except ValidationError as error:
        raise config_error(error, whole, where) from None
    return checked.training.model_dump(mode="json", exclude_unset=True)


@cache
def _whole(recipe_class: type[Any], task_type: TaskType, has_objective: bool) -> type[StrictConfig]:
    """Return the recipe class with the fields of `training:`."""
    section = training_section(task_type, has_objective)
    return create_model("Recipe", __base__=recipe_class, training=(section, section()))


@cache
def training_section(task_type: TaskType, has_objective: bool = False) -> type[StrictConfig]:
    """Create the config class with the fields of the task's arguments class and lorakit's.

    Args:
        task_type: The task.
        has_objective: Whether the recipe has an `objective`, which leaves some keys without use.
    """
    hints = argument_hints(task_type)
    fields: dict[str, Any] = {
        name: (with_bounds(name, _in_yaml(hint)), None)
        for name, hint in hints.items()
        if not name.startswith("_")
    }
    optimizers = (OPTIMIZER_NAME, *optimizer_names())
    fields["optim"] = (Literal[optimizers], None)
    fields["train_sampling_strategy"] = (Literal[_SAMPLING_STRATEGIES], None)
    fields["fsdp"] = (bool | None, None)  # transformers deprecates the list of words
    fields["fsdp_config"] = (dict[str, Any] | None, None)
    accelerate = Annotated[dict[str, Any] | None, AfterValidator(_refuse_dealing)]
    fields["accelerator_config"] = (accelerate, None)
    for name, kind, bound in (
        ("early_stopping_patience", int, Field(ge=1)),
        ("early_stopping_threshold", float, Field(ge=0)),
        (LORA_PLUS_KEY, float, Field(gt=0)),
    ):
        fields[name] = (Annotated[with_bounds(name, kind), bound], None)
    for name, reason in OWNED_KEYS.items():
        fields[name] = _refuse_field(f"lorakit sets this: {reason}")
    if has_objective:
        fields |= {
            name: _refuse_field(_NO_RIGHT_ANSWER) for name in _SUPERVISED_KEYS if name in fields
        }
    # Omitted keys stay omitted: their defaults are those of the arguments class.
    config = {**StrictConfig.model_config, "validate_default": False}
    base = type("Section", (StrictConfig,), {"model_config": config, "__module__": __name__})
    return create_model("TrainingSection", __base__=base, **fields)


def _in_yaml(hint: Any) -> Any:
    """Remove from a union what YAML cannot express, and `str` beside an enumeration.

    Transformers writes `SchedulerType | str`, but only the enumeration's values are valid.
    """
    if get_origin(hint) not in (Union, UnionType):
        return hint
    members = [member for member in get_args(hint) if member is not NotInYaml]
    if any(isinstance(member, type) and issubclass(member, Enum) for member in members):
        members.remove(str)
    return Union[tuple(members)]  # noqa: UP007 (the members are known at run time only)


def _refuse_dealing(config: dict[str, Any] | None) -> dict[str, Any] | None:
    given = [key for key in _DEALING_KEYS if key in (config or {})]
    if given:
        raise ValueError(
            f"lorakit gives the examples to the processes: leave out {' and '.join(given)}"
        )
    return config


def _refuse_field(reason: str) -> tuple[Any, None]:
    """Return a field that refuses any value."""

    def reject(value: Any) -> Any:
        raise ValueError(reason)

    return Annotated[Any, BeforeValidator(reject)], None
