"""The training arguments of a run: the recipe's, completed with lorakit's defaults."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorakit.config.frozen import unfreeze
from lorakit.distributed.processes import process_count
from lorakit.distributed.sharding import check_sharding
from lorakit.errors import ConfigError, did_you_mean
from lorakit.libraries.torch_environment import separate_inductor_cache
from lorakit.quantization.devices import require_bitsandbytes
from lorakit.recipes.search_sections import lower_is_better
from lorakit.recipes.training_section import EARLY_STOPPING_KEYS, LORA_PLUS_KEY, OPTIMIZER_NAME
from lorakit.training.trainers.batching import GROUP_BY_LENGTH, pads_nothing

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from lorakit.recipes.recipe import Recipe
    from lorakit.training.tasks.base import Task

_BITSANDBYTES_OPTIMIZERS = (
    *("adamw_8bit", "adamw_bnb_8bit", "lion_8bit", "lion_32bit", "rmsprop_bnb", "rmsprop_bnb_8bit"),
    *("rmsprop_bnb_32bit", "ademamix", "ademamix_8bit"),
)

_STEPS_TRIED = 1000
"""Length of the schedule that is tried before the number of steps is known."""


def resolve_training(
    recipe: Recipe, task: Task, train_examples: int, has_validation: bool
) -> dict[str, Any]:
    """Return the training arguments of a run: the recipe's, completed with lorakit's defaults.

    Args:
        recipe: The recipe.
        task: Its task.
        train_examples: Number of training examples.
        has_validation: Whether there are validation examples.

    Raises:
        ConfigError: The recipe asks for evaluation, the best checkpoint or early stopping, and
            there are no validation examples.
    """
    from lorakit.training.tasks.base import seed_of

    given = unfreeze(recipe.training)  # transformers writes into some of it
    if not has_validation:
        _refuse_without_validation(given)
    strategy = given.get("eval_strategy", "epoch") if has_validation else "no"
    save_strategy = given.get("save_strategy", strategy if strategy != "no" else "epoch")
    defaults: dict[str, Any] = {
        "learning_rate": 2e-4,
        "seed": seed_of(recipe),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "train_sampling_strategy": (
            "random" if pads_nothing(given) or recipe.data.streaming else GROUP_BY_LENGTH
        ),
        "bf16": False,
        "activation_checkpointing": False,
        "logging_steps": 0,
        "eval_strategy": strategy,
        "save_strategy": save_strategy,
        "save_total_limit": 2,
        "metric_for_best_model": task.best_metric if strategy != "no" else None,
        "greater_is_better": task.greater_is_better if strategy != "no" else None,
        "load_best_model_at_end": strategy != "no" and save_strategy in (strategy, "best"),
        **task.default_arguments(recipe),
    }
    if strategy == "steps" and "eval_steps" in given and "save_steps" not in given:
        defaults["save_steps"] = given["eval_steps"]
    if "metric_for_best_model" in given and "greater_is_better" not in given:
        defaults["greater_is_better"] = not lower_is_better(given["metric_for_best_model"])
    resolved = {**defaults, **_with_new_names(given)}
    resolved["logging_steps"] = resolved["logging_steps"] or _logging_steps(
        resolved, train_examples
    )
    if "early_stopping_threshold" in given and "early_stopping_patience" not in given:
        raise ConfigError(
            f"training.early_stopping_threshold={given['early_stopping_threshold']} stops nothing "
            "without training.early_stopping_patience, expected both. Set the number of "
            "evaluations without progress, or leave the threshold out."
        )
    if "early_stopping_patience" in given and not resolved["load_best_model_at_end"]:
        raise ConfigError(
            "training.early_stopping_patience needs the best checkpoint: got "
            f"eval_strategy={strategy}, save_strategy={save_strategy} and load_best_model_at_end="
            f"{resolved['load_best_model_at_end']}, expected true and two equal strategies. "
            "Leave the three out, or set them so."
        )
    return resolved


def without_schedule(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return training arguments for single steps or evaluations, outside of a run.

    They evaluate and save nothing by themselves, never stop early, and report to nobody.

    Args:
        training: A recipe's `training:` section.
    """
    left_out = {*EARLY_STOPPING_KEYS, "report_to"}
    kept = {key: value for key, value in training.items() if key not in left_out}
    return kept | {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def _refuse_without_validation(given: Mapping[str, Any]) -> None:
    asks = [
        f"training.{key}"
        for key in ("eval_strategy", "load_best_model_at_end", *EARLY_STOPPING_KEYS)
        if given.get(key) not in (None, False, "no")
    ]
    if asks:
        raise ConfigError(
            f"There is no validation data for {', '.join(asks)}: data.validation is not given and "
            "data.validation_fraction is 0. Set one of the two."
        )


def _with_new_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Rename transformers' old fields, which recipes may still use."""
    return {
        key.replace("gradient_checkpointing", "activation_checkpointing"): value
        for key, value in given.items()
    }


def _logging_steps(training: Mapping[str, Any], train_examples: int) -> int:
    """Return an interval that logs about ten times per epoch, and at least every ten steps."""
    examples = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    examples *= process_count()
    return min(max(math.ceil(train_examples / examples) // 10, 1), 10)


def build_arguments(
    training: Mapping[str, Any], task: Task, run_path: Path, device_type: str | None = None
) -> TrainingArguments:
    """Construct the task's arguments object.

    Args:
        training: The result of `resolve_training`.
        task: The task.
        run_path: The run directory, where checkpoints are saved.
        device_type: The intended device, such as "cuda"; None for the device of this machine.

    Raises:
        ConfigError: transformers or TRL refuses the combination; the message has its reason.
    """
    values = {key: value for key, value in training.items() if key not in EARLY_STOPPING_KEYS}
    lora_plus_ratio = values.pop(LORA_PLUS_KEY, None)
    values.setdefault("use_cpu", not torch.accelerator.is_available())
    values["report_to"] = _reporters(values.pop("report_to", None) or [])
    on_cpu = values["use_cpu"] if device_type is None else device_type == "cpu"
    if values.get("fp16") and on_cpu:
        raise ConfigError(
            "training.fp16 needs a GPU: got true on a CPU, where gradients cannot be scaled. "
            "Use training.bf16=true, or leave it out."
        )
    if device_type is None:
        _prepare_to_compile(values)
    check_sharding(values)
    optimizer = _check_optimizer(values, on_cpu, is_here=device_type is None)
    try:
        arguments = task.arguments_class()(
            output_dir=str(run_path),
            disable_tqdm=True,
            logging_nan_inf_filter=bool(values.get("fp16")),  # else such a loss is an error
            restore_callback_states_from_checkpoint=True,
            **{**values, **optimizer},
        )
    except Exception as error:  # transformers raises many types
        reason = re.sub(r"(^| )--(?=\w)", r"\1training.", " ".join(str(error).split()))
        raise ConfigError(
            f"The training arguments do not fit together: {reason} "
            "Change them under `training:` in the recipe."
        ) from None
    if isinstance(arguments.lr_scheduler_kwargs, str):
        raise ConfigError(
            f"training.lr_scheduler_kwargs: got {arguments.lr_scheduler_kwargs!r}, expected a "
            "mapping of the scheduler's arguments. Write it as `key: value`."
        )
    _require_schedule(arguments)
    if optimizer:
        arguments.optim = OPTIMIZER_NAME  # the trainer knows it, transformers does not
    setattr(arguments, LORA_PLUS_KEY, lora_plus_ratio)  # likewise
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else transformers would split each batch by nn.DataParallel
    return arguments


def _require_schedule(arguments: TrainingArguments) -> None:
    """Create the schedule of the learning rate for an optimizer of one number.

    Raises:
        ConfigError: transformers refuses the scheduler's arguments.
    """
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    kwargs: Any = arguments.lr_scheduler_kwargs or {}
    steps = max(arguments.max_steps, _STEPS_TRIED)
    warmup_steps = arguments.get_warmup_steps(steps)
    try:
        get_scheduler(arguments.lr_scheduler_type, optimizer, warmup_steps, steps, kwargs)
    except Exception as error:  # whatever a scheduler makes of arguments that it does not expect
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"training.lr_scheduler_type={getattr(arguments.lr_scheduler_type, 'value', '')} "
            f"does not go with training.lr_scheduler_kwargs={kwargs}: {reason}. Change one of them."
        ) from None


def _reporters(given: str | Sequence[str]) -> list[str]:
    """Return the reporting integrations besides TensorBoard.

    Raises:
        ConfigError: transformers does not know one, or its package is not installed.
    """
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    names = [given] if isinstance(given, str) else list(given)
    installed = get_available_reporting_integrations()
    if names == ["all"]:
        names = installed
    for name in names:
        if name not in (*INTEGRATION_TO_CALLBACK, "none"):
            raise ConfigError(
                f"training.report_to: got {name!r}, expected one of "
                f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}, none or all."
                f"{did_you_mean(str(name), INTEGRATION_TO_CALLBACK)}"
            )
        if name not in (*installed, "none", "flyte"):  # transformers does not look for flyte
            raise ConfigError(
                f"training.report_to: got {name!r}, whose package is not installed, expected one "
                f"of {', '.join(sorted(installed))} or none. Install it, or leave it out: the run "
                "directory has TensorBoard's files and metrics.jsonl in any case."
            )
    return [name for name in names if name not in ("tensorboard", "none")]


def _check_optimizer(values: Mapping[str, Any], on_cpu: bool, *, is_here: bool) -> dict[str, Any]:
    """Check `training.optim`, and return the value for transformers if it is lorakit's optimizer.

    Raises:
        ConfigError: The device cannot run it.
    """
    name = values.get("optim")
    if name == OPTIMIZER_NAME:
        if not on_cpu:
            raise ConfigError(
                f"training.optim={name} keeps its state in the CPU's memory: got a GPU. Use "
                "paged_adamw_32bit or paged_adamw_8bit there."
            )
        return {"optim": "adamw_torch"}
    is_paged = isinstance(name, str) and name.startswith("paged_")
    if is_paged and (on_cpu or (is_here and not torch.cuda.is_available())):
        raise ConfigError(
            f"training.optim: got {name}, which needs a GPU that pages its memory to the CPU. "
            f"Here {OPTIMIZER_NAME} does the same job with a file on disk; adamw_torch and "
            "adamw_8bit (a quarter of the state) keep it in memory."
        )
    if name in _BITSANDBYTES_OPTIMIZERS or is_paged:
        require_bitsandbytes()
    return {}


def _prepare_to_compile(values: Mapping[str, Any]) -> None:
    """Check for the C++ compiler that torch.compile needs on a CPU, and separate its cache.

    Raises:
        ConfigError: There is none.
    """
    compiles = any(values.get(f"torch_compile{part}") for part in ("", "_backend", "_mode"))
    backend = values.get("torch_compile_backend") or "inductor"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not compiles or not values["use_cpu"] or backend != "inductor":
        return
    separate_inductor_cache()
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"training.torch_compile needs a C++ compiler on a CPU: got '{compiler}', expected an "
            "installed program. Install g++ or name another in the environment variable CXX, or "
            "leave torch_compile out."
        )


def batch_notes(arguments: TrainingArguments, *, is_sharded: bool) -> tuple[str, ...]:
    """Return notes on the examples per step in several processes, or on idle GPUs."""
    batch, count = arguments.per_device_train_batch_size, process_count()
    accumulated = arguments.gradient_accumulation_steps
    if count > 1:
        examples = batch * count * accumulated
        sharded = (f"The model is sharded over {count} processes (FSDP2).",) if is_sharded else ()
        return (
            *sharded,
            f"Each step has about {examples} examples: {batch} in a batch, {count} processes, "
            f"{accumulated} {'batch' if accumulated == 1 else 'batches'} accumulated.",
        )
    gpus = torch.cuda.device_count()
    if gpus > 1 and arguments.device.type == "cuda":
        return (
            f"One of {gpus} GPUs is used. To use all: torchrun --nproc-per-node {gpus} "
            "-m lorakit train ...",
        )
    return ()
