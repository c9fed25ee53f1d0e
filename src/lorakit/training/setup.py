"""Everything a run needs before its first step; nothing is written while it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.injection import Injection, add_adapter, count_parameters
from lorakit.training.arguments import build_arguments, resolve_training
from lorakit.training.callbacks import EventHandler
from lorakit.training.data import Splits, load_splits
from lorakit.training.recipe import Recipe
from lorakit.training.tasks import Encoded, Task, task_for
from lorakit.training.trainer import AdapterTrainerMixin

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

_DEFAULT_SEED = 42


@dataclass(frozen=True)
class Setup:
    """A recipe brought to life: data, base with its adapter, and training arguments."""

    recipe: Recipe
    """The recipe with every training argument that lorakit sets written out."""
    task: Task
    splits: Splits
    labels: tuple[str, ...] | None
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    injection: Injection
    encoded: Encoded
    arguments: TrainingArguments

    def build_trainer(self, callbacks: Sequence[TrainerCallback] = ()) -> Trainer:
        """Build the task's trainer with lorakit's mixin."""
        return self.task.build_trainer(
            self.model,
            self.tokenizer,
            self.encoded,
            self.arguments,
            self.labels,
            callbacks,
            AdapterTrainerMixin,
        )


def prepare(
    recipe: Recipe,
    emit: EventHandler,
    *,
    check: Callable[[Recipe], None] | None = None,
    attach: Callable[[PreTrainedModel], Injection] | None = None,
) -> Setup:
    """Load the data and the base, add the adapter, and encode the rows; cheap checks come first.

    Args:
        recipe: The recipe.
        emit: Told of "data" and "injected".
        check: Called with the resolved recipe before anything heavy is loaded; may raise.
        attach: Puts the adapter onto the base; by default a fresh one as the recipe says.

    Raises:
        ConfigError, MissingFileError, DataError, TargetError: The recipe or what it names is
            wrong.
    """
    task = task_for(recipe.task)
    seed = recipe.training.get("seed", _DEFAULT_SEED)
    splits = load_splits(recipe.data, seed)
    training = resolve_training(recipe, task, len(splits.train), splits.validation is not None)
    arguments = build_arguments(training, task, Path(recipe.output))
    recipe = recipe.model_copy(update={"training": training})
    if check is not None:
        check(recipe)
    labels = task.labels(splits, recipe)
    tokenizer = task.load_tokenizer(recipe)
    _seed(seed)  # a fresh head and the adapter are drawn from here
    model = task.load_base(recipe, tokenizer, labels)
    injection = attach(model) if attach else add_adapter(model, recipe.lora_config)
    _let_gradients_through(model, arguments)
    emit("injected", {"injection": injection, "parameter_count": count_parameters(model)})
    encoded = task.encode(splits, recipe, tokenizer, model, labels)
    emit("data", _data_event(splits, encoded))
    return Setup(recipe, task, splits, labels, tokenizer, model, injection, encoded, arguments)


def _seed(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)


def _let_gradients_through(model: PreTrainedModel, arguments: TrainingArguments) -> None:
    """Let re-entrant checkpoints reach the adapters behind frozen embeddings.

    A re-entrant checkpoint takes part in the backward pass only if one of its inputs requires a
    gradient, and the outputs of frozen embeddings do not.
    """
    options: Any = arguments.activation_checkpointing_kwargs or {}
    if arguments.activation_checkpointing and options.get("use_reentrant"):
        model.enable_input_require_grads()


def _data_event(splits: Splits, encoded: Encoded) -> dict[str, Any]:
    return {
        "train_rows": len(splits.train),
        "validation_rows": 0 if splits.validation is None else len(splits.validation),
        "notes": (*splits.notes, *encoded.notes),
    }
