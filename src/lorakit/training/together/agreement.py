"""What runs must have in common to train together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from lorakit.distributed.processes import process_count
from lorakit.errors import ConfigError
from lorakit.injection.state import replaced_modules
from lorakit.recipes.recipe import Recipe
from lorakit.training.frozen_part.blocks import has_dropout
from lorakit.training.together.stacked_model import backbone_of
from lorakit.training.trainers.adapter_trainer import checkpoints_reentrantly

_TRAINING = (
    "use_cpu",
    "bf16",
    "fp16",
    "tf32",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
)
_NOT_QUANTIZED = "lora.modules_to_save"
"""Key of the modules that a quantized base keeps as they are; runs on a dense one may differ."""
_ALIKE: Mapping[str, Callable[[Recipe], Any]] = {
    **{key: attrgetter(key) for key in ("model", "revision", "task", "dtype", "quantization")},
    _NOT_QUANTIZED: lambda recipe: recipe.lora.modules_to_save if recipe.quantization else None,
    **{key: attrgetter(key) for key in ("float32_small_parameters", "trust_remote_code")},
    "data.new_tokens": attrgetter("data.new_tokens"),
    "objective": lambda recipe: None if recipe.objective is None else recipe.objective.type,
    **{f"training.{key}": lambda recipe, key=key: recipe.training.get(key) for key in _TRAINING},
}
_ALONE: Mapping[str, str] = {
    "training.torch_compile": "it compiles the model of one run",
    "training.fsdp": "it shards the model of one run",
    "training.neftune_noise_alpha": "the noise would be added to the embeddings of all runs",
    "training.bf16_full_eval": "it converts the weights that all runs share",
    "training.fp16_full_eval": "it converts the weights that all runs share",
}
ADVICE = "Train them one after another: leave --together out."


def require_agreement(recipes: Sequence[Recipe], advice: str = ADVICE) -> None:
    """Check that runs can share one base and its passes.

    Args:
        recipes: Recipes of the runs.
        advice: What to do otherwise.

    Raises:
        ConfigError: Names each key and its values.
    """
    problems: list[str] = []
    if process_count() > 1:
        problems.append("the runs are launched in several processes, expected one process")
    first = recipes[0]
    for recipe in recipes[1:]:
        for key, read in _ALIKE.items():
            ours, theirs = _plain(read(recipe)), _plain(read(first))
            if ours != theirs:
                problems.append(
                    f"{key} is {_text(theirs)} in {_name(first)} and {_text(ours)} in "
                    f"{_name(recipe)}"
                )
    for recipe in recipes:
        problems += [f"{_name(recipe)} has {reason}" for reason in find_unshared_settings(recipe)]
    outputs = [str(Path(recipe.output).resolve()) for recipe in recipes]
    twice = sorted({output for output in outputs if outputs.count(output) > 1})
    if twice:
        raise ConfigError(
            f"Cannot train these runs together: got output {twice[0]} twice, expected a directory "
            "for each run. Give each recipe another output."
        )
    if problems:
        raise ConfigError(f"Cannot train these runs together: {'; '.join(problems)}. {advice}")


def find_unshared_settings(recipe: Recipe) -> list[str]:
    """Return what a recipe has that no runs can share: each setting, and why."""
    reasons = [
        f"{key}: {reason}"
        for key, reason in _ALONE.items()
        if recipe.training.get(key.removeprefix("training."))
    ]
    if recipe.task == "SEQ_2_SEQ_LM":
        reasons.append("task SEQ_2_SEQ_LM, expected one sequence a row")
    return reasons


def find_fixed_keys(recipe: Recipe, keys: Iterable[str]) -> list[str]:
    """Return those of some keys of a recipe that may not vary between runs that train together."""
    fixed = {*_ALIKE, *_ALONE} - (set() if recipe.quantization else {_NOT_QUANTIZED})
    return [key for key in keys if any(f"{key}.".startswith(f"{one}.") for one in fixed)]


def find_unshared_part(model: Any, arguments: Any) -> str | None:
    """Return what keeps a run's model from sharing its passes, or None.

    Args:
        model: A run's base with the adapter; the weights are not read.
        arguments: Its training arguments.
    """
    drops = model.config.to_dict()
    if backbone_of(model) is model:
        return f"this {type(model).__name__} has no part below its head that could be shared"
    if any(key.endswith("layerdrop") and value for key, value in drops.items()):
        return "its base skips layers at random (layerdrop)"
    if arguments.activation_checkpointing and checkpoints_reentrantly(arguments):
        return "activation_checkpointing_kwargs.use_reentrant is true, expected false"
    if arguments.activation_checkpointing and has_dropout(model):
        return "activation checkpointing repeats the dropout of its base"
    if dropping := _dropping_copies(model):
        return (
            f"{dropping[0]} drops activations and is trained in full, expected "
            "lora.modules_to_save without it"
        )
    return None


def _dropping_copies(model: Any) -> list[str]:
    """Return what the shared part has trained copies of that draw masks for rows of one run."""
    return [
        path
        for path, module in replaced_modules(backbone_of(model))
        if any(has_dropout(copy) for copy in module.trained_copies.values())
    ]


def differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return what differs between the bases of two runs, by key."""
    return "; ".join(
        f"{key} is {_text(first.get(key))} there and {_text(other.get(key))} here"
        for key in dict.fromkeys((*first, *other))
        if first.get(key) != other.get(key)
    )


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def _name(recipe: Recipe) -> str:
    return f"the run of {recipe.output}"
