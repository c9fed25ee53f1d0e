"""What a task is: how its data, base model and trainer are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lorakit.config import LoraConfig, TaskType
from lorakit.injection.selection.targets import name_matches
from lorakit.models.new_tokens import (
    add_new_tokens,
    add_new_tokens_to_config,
    grow_for_new_tokens,
    new_token_ids,
)
from lorakit.models.pretrained import (
    auto_model,
    fresh_modules,
    fresh_outside_head,
    label_options,
    load_model,
    load_tokenizer,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from lorakit.data import Splits
    from lorakit.recipes.recipe import Recipe


@dataclass(frozen=True)
class Encoded:
    """Tokenized rows, ready for the trainer."""

    train: Dataset
    validation: Dataset | None
    notes: tuple[str, ...] = ()
    """What was done to the rows, one sentence each, such as how many were cut."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What inference has to repeat (max_length, source_prefix, format); written beside the adapter
    by `lorakit.training.save_settings.save_settings(adapter_dir, task_type, labels, encoded)`."""


@dataclass(frozen=True)
class PreviewExample:
    """One row as the model will see it."""

    tokens: list[str]
    counted: list[bool]
    """Which tokens count in the loss (the model is trained to predict them)."""
    note: str
    """What the tokens cannot show, such as the label of a whole text."""


class Task(ABC):
    """How one task type turns a recipe into data, a base model and a trainer."""

    task_type: ClassVar[TaskType]
    best_metric: ClassVar[str]
    """The evaluation metric that picks the best checkpoint, with its "eval_" prefix."""
    greater_is_better: ClassVar[bool]

    @abstractmethod
    def arguments_class(self) -> type[TrainingArguments]:
        """Return the class whose fields may stand under `training:`."""

    def default_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the training arguments this task sets where the recipe says nothing."""
        return {}

    def columns(self, recipe: Recipe) -> dict[str, str]:
        """Return the columns that examples must have, by the recipe key that names each."""
        return {}

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return the metrics an evaluation has, without their "eval_" prefix.

        Args:
            labels: The label names, for tasks that have them.
            training: The resolved training arguments.
        """
        return ("loss",)

    def label_column(self, recipe: Recipe) -> str | None:
        """Return the column of the labels that examples are told apart by, if the task has one."""
        return None

    def labels(self, splits: Splits, recipe: Recipe) -> tuple[str, ...] | None:
        """Return the label names in the order of their ids, or None for a task without labels.

        Raises:
            DataError: The label column is missing or holds something that is no label.
        """
        return None

    def load_tokenizer(self, recipe: Recipe) -> PreTrainedTokenizerBase:
        """Load the base model's tokenizer and add the recipe's new tokens; it is sure to pad.

        Raises:
            MissingFileError: There is no such model, or it has no tokenizer.
            ConfigError: It has no token to pad with, or has one of `data.new_tokens` already.
        """
        return add_new_tokens(load_tokenizer(recipe.model, **loading_options(recipe)), recipe)

    def load_base(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
    ) -> PreTrainedModel:
        """Load the base model with the task's head, in the recipe's dtype.

        A head the checkpoint does not have is drawn with the recipe's seed, so that a run repeats.

        Raises:
            MissingFileError: There is no such model.
            ConfigError: The model cannot do this task.
            QuantizationError: It cannot be quantised as the recipe says.
        """
        model = load_model(
            auto_model(self.task_type),
            recipe.model,
            seed=seed_of(recipe),
            has_head=labels is not None,
            dtype=recipe.dtype,
            quantization=recipe.quantization,
            trained_in_full=recipe.lora.modules_to_save,
            device=torch.device("cpu") if recipe.training.get("use_cpu") else None,
            **loading_options(recipe),
            **label_options(labels),
        )
        grow_for_new_tokens(model, tokenizer, recipe)
        set_padding(model, tokenizer)
        return model

    def lora_config(
        self, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> LoraConfig:
        """Return the recipe's `lora:` section as this base model needs it.

        The task type is set, the rows of the recipe's new tokens are trained, and modules the
        checkpoint did not have (a BERT pooler) are added to `modules_to_save`: loading the base
        again would draw other weights for them.
        """
        added = tuple(
            path
            for path in fresh_outside_head(model)
            if not name_matches(recipe.lora.modules_to_save, path)
        )
        config = recipe.lora.model_copy(
            update={
                "task_type": self.task_type,
                "modules_to_save": recipe.lora.modules_to_save + added,
            }
        )
        return add_new_tokens_to_config(config, model, new_token_ids(tokenizer, recipe))

    @abstractmethod
    def encode(
        self,
        splits: Splits,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labels: tuple[str, ...] | None,
    ) -> Encoded:
        """Tokenize the rows and check that something can be learnt from them.

        Raises:
            DataError: Lists every problem of the rows.
            ConfigError: `data.max_length` is above what the model can take.
        """

    @abstractmethod
    def preview_examples(
        self,
        encoded: Encoded,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
        n: int = 2,
    ) -> list[PreviewExample]:
        """Return the first training rows, read back from the tensors the model will be given."""

    @abstractmethod
    def build_trainer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Encoded,
        arguments: TrainingArguments,
        labels: tuple[str, ...] | None,
        callbacks: Sequence[TrainerCallback],
        mixin: type,
    ) -> Trainer:
        """Build the trainer: a class made of `mixin` and the task's own trainer class."""

    def settings(self, recipe: Recipe, model: PreTrainedModel, **more: Any) -> dict[str, Any]:
        """Return what inference has to repeat: this task's own settings, base dtype and seed."""
        dtype = str(model.dtype).removeprefix("torch.")
        how = recipe.quantization
        if how is not None:  # another device computes in what it has
            how = how.model_copy(update={"compute_dtype": "auto"})
            return {"quantization": how, "seed": seed_of(recipe), **more}
        return {"dtype": dtype, "seed": seed_of(recipe), **more}

    def fresh_notes(self, recipe: Recipe, model: PreTrainedModel) -> list[str]:
        """Say which weights are new, if any are and are trained; a loaded adapter has its own."""
        fresh = fresh_modules(model)
        if not fresh or not any(parameter.requires_grad for parameter in model.parameters()):
            return []
        return [f"New weights, drawn with seed {seed_of(recipe)} and trained: {', '.join(fresh)}."]


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a model know its tokenizer's padding token."""
    pad = tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = pad
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.pad_token_id = pad


def seed_of(recipe: Recipe) -> int:
    """Return the seed of a run: `training.seed`, or 42 as in transformers."""
    return int(recipe.training.get("seed", 42))


def loading_options(recipe: Recipe) -> dict[str, Any]:
    """Return the options with which both model and tokenizer are loaded."""
    return {"revision": recipe.revision, "trust_remote_code": recipe.trust_remote_code}
