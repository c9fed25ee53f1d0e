"""Preview a run without training and without writing anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.injection import Injection, ParameterCount, count_parameters
from lorakit.recipes.recipe import Recipe
from lorakit.training.callbacks import ignore_event
from lorakit.training.setup import Setup, prepare
from lorakit.training.tasks import PreviewExample

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run."""

    recipe: Recipe
    """The recipe with every training argument written out."""
    injection: Injection
    parameter_count: ParameterCount
    dtypes: dict[str, str]
    """dtypes of "base" (the adapted weights), "adapter" (its factors) and "compute" (products)."""
    train_examples: int | None
    """None if they are read when they are needed."""
    validation_examples: int
    steps: int
    """Optimizer steps of the whole run."""
    labels: tuple[str, ...] | None
    preview_examples: tuple[PreviewExample, ...]
    """The first training examples as the model receives them."""
    notes: tuple[str, ...]
    """Notes on the choice of the dtype and on what was done to the data, one sentence each."""


def dry_run(recipe: Recipe, *, preview_examples: int = 2) -> DryRun:
    """Do everything that training does before its first step, without a run directory.

    Args:
        recipe: The recipe.
        preview_examples: Number of training examples to show.

    Raises:
        ConfigError, MissingFileError, DataError, TargetError: As `train` would raise.
    """
    setup = prepare(recipe, ignore_event, measures_dtype=False)
    samples = setup.task.preview_examples(setup.encoded, setup, preview_examples)
    validation = setup.encoded.validation
    dtype_notes = (setup.dtype_choice.note,) if setup.dtype_choice else ()
    return DryRun(
        recipe=setup.recipe,
        injection=setup.injection,
        parameter_count=count_parameters(setup.model),
        dtypes=_dtypes(setup),
        train_examples=None if setup.encoded.stream is not None else len(setup.encoded.train),
        validation_examples=0 if validation is None else len(validation),
        steps=optimizer_steps(setup.arguments, setup.encoded.epoch_examples),
        labels=setup.labels,
        preview_examples=tuple(samples),
        notes=(*dtype_notes, *setup.splits.notes, *setup.encoded.notes),
    )


def optimizer_steps(arguments: TrainingArguments, examples: int) -> int:
    """Return the number of optimizer steps for a number of examples, as the Trainer counts."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = examples / arguments.train_batch_size
    batches = math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)
    steps_per_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    return math.ceil(arguments.num_train_epochs * steps_per_epoch)


def _dtypes(setup: Setup) -> dict[str, str]:
    base = setup.injection.base_dtype
    if setup.arguments.bf16:
        compute = "bfloat16 (autocast)"
    elif setup.arguments.fp16:
        compute = "float16 (autocast, scaled loss)"
    else:
        compute = base
    dtypes = {"base": base, "adapter": setup.injection.factor_dtype, "compute": compute}
    if setup.recipe.float32_small_parameters:
        dtypes["small parameters"] = "float32"
    return dtypes
