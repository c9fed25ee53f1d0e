"""The interface of a task: its data, base model and trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.adapters.lineage import Lineage
from lorakit.analysis.baselines import Guess
from lorakit.config import LoraConfig, ProblemType, TaskType
from lorakit.data.tokenize_examples import first_examples
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
    set_padding,
)
from lorakit.training.encoded import Encoded, PreviewExample
from lorakit.training.predicted import Evaluated, Predicted, prediction_table

if TYPE_CHECKING:
    from datasets import Dataset

    from lorakit.data import Splits
    from lorakit.recipes.recipe import Recipe


@dataclass(frozen=True)
class Loaded:
    """What a task loads for a recipe."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...] | None
    """The label names in the order of their ids; None for a task without labels."""
    model: PreTrainedModel
    """The base model, with the task's head and usually with an adapter."""


class Task(ABC):
    """Turns a recipe of one task type into data, a base model and a trainer."""

    task_type: ClassVar[TaskType]
    problem_type: ClassVar[ProblemType | None] = None
    """What the head predicts, for text classifiers."""
    best_metric: ClassVar[str]
    """The evaluation metric that picks the best checkpoint, with its "eval_" prefix."""
    greater_is_better: ClassVar[bool]
    needs_reference: bool = False
    """Whether an adapter to start from also stays as it was, to be compared with."""
    base_trainer_class: ClassVar[type[Trainer]]
    """The trainer of this task, without support for adapters."""
    trainer_class: ClassVar[type[Trainer]]
    """The trainer of this task that saves and resumes adapters."""

    def arguments_class(self) -> type[TrainingArguments]:
        """Return the class whose fields are the keys of `training:`."""
        return TrainingArguments

    def default_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the defaults of this task for training arguments that the recipe leaves out."""
        return {}

    def columns(self, recipe: Recipe) -> dict[str, str]:
        """Return the required columns, by the recipe key that names each."""
        return {}

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return the metrics of an evaluation, without their "eval_" prefix.

        Args:
            labels: The label names, for tasks that have them.
            training: The resolved training arguments.
        """
        return ("loss",)

    def label_column(self, recipe: Recipe) -> str | None:
        """Return the column of class labels or tags, if the task has one."""
        return None

    def labels(self, splits: Splits, recipe: Recipe) -> tuple[str, ...] | None:
        """Return the label names in the order of their ids, or None for a task without labels.

        Raises:
            DataError: The label column is missing or has values that are not labels.
        """
        return None

    def load_tokenizer(self, recipe: Recipe, saved: Path | None = None) -> PreTrainedTokenizerBase:
        """Load the base model's tokenizer, which can pad, and add the recipe's new tokens.

        Args:
            recipe: The recipe.
            saved: Directory of a tokenizer to load instead, that of an adapter, which has the
                adapter's new tokens already.

        Raises:
            MissingFileError: The model does not exist or has no tokenizer.
            ConfigError: It has no token to pad with, or has one of `data.new_tokens` already.
        """
        return load_run_tokenizer(recipe, saved)

    def load_base(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
    ) -> PreTrainedModel:
        """Load the base model with the task's head, in the recipe's dtype.

        A head that the checkpoint lacks is initialized with the recipe's seed, so that runs are
        reproducible.

        Raises:
            MissingFileError: The model does not exist.
            ConfigError: The model cannot do this task.
            QuantizationError: It cannot be quantized as the recipe says.
        """
        model = load_model(
            auto_model(self.task_type),
            recipe.model,
            seed=seed_of(recipe),
            has_head=labels is not None,
            dtype="auto" if recipe.dtype == "saved" else recipe.dtype,  # as transformers says
            quantization=recipe.quantization,
            trained_in_full=recipe.lora.modules_to_save,
            device=torch.device("cpu") if recipe.training.get("use_cpu") else None,
            **loading_options(recipe),
            **label_options(labels, self.problem_type),
        )
        grow_for_new_tokens(model, tokenizer, recipe)
        set_padding(model, tokenizer)
        return model

    def lora_config(self, loaded: Loaded) -> LoraConfig:
        """Return the recipe's `lora:` section, completed for this base model.

        Sets the task type, trains the recipe's new tokens, and adds modules that the checkpoint
        lacks (a BERT pooler) to `modules_to_save`: loading the base again would initialize them
        with other weights.
        """
        recipe, model = loaded.recipe, loaded.model
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
        return add_new_tokens_to_config(config, model, new_token_ids(loaded.tokenizer, recipe))

    @abstractmethod
    def encode(self, splits: Splits, loaded: Loaded) -> Encoded:
        """Tokenize the examples and check that the model can learn from them.

        Raises:
            DataError: Lists every problem of the examples.
            ConfigError: `data.max_length` exceeds the model's limit.
        """

    def preview_examples(
        self, encoded: Encoded, loaded: Loaded, n: int = 2
    ) -> list[PreviewExample]:
        """Return the first training examples as the model receives them."""
        return [self.preview_example(one, loaded) for one in first_examples(encoded.train, n)]

    @abstractmethod
    def preview_example(self, example: dict[str, Any], loaded: Loaded) -> PreviewExample:
        """Return an encoded example, read back from the collated tensors."""

    @abstractmethod
    def trainer_options(
        self, loaded: Loaded, encoded: Encoded, arguments: TrainingArguments
    ) -> dict[str, Any]:
        """Return the trainer's arguments that depend on the task: its collator and metrics."""

    def with_settings(self, settings: InferenceSettings) -> Task:
        """Return the task that measures an adapter by the settings saved with it."""
        return self

    def prediction_reader(self, loaded: Loaded) -> Callable[[Evaluated], Predicted] | None:
        """Return what reads predictions from the arrays of an evaluation, if these have any."""
        return None

    def guess(self, loaded: Loaded, known: Any, examples: Any) -> Guess | None:
        """Return what an adapter is compared with where the base cannot answer, else None.

        Args:
            loaded: What the task loaded.
            known: Encoded examples that the guess is made from.
            examples: Encoded examples to guess.
        """
        if not fresh_modules(loaded.model):
            return None
        return self.blind_guess(known, examples, loaded.labels or ())

    def blind_guess(self, known: Any, examples: Any, labels: Sequence[str]) -> Guess | None:
        """Return a guess that reads no input, for a base without a trained head; see `guess`."""
        return None

    def prediction_columns(
        self, predicted: Predicted, examples: Dataset, loaded: Loaded, encoded: Encoded
    ) -> dict[str, list[Any]]:
        """Return the columns of predictions.jsonl: inputs, expected answers and predictions.

        By default the last of the task's columns has the answers.

        Args:
            predicted: The predictions, which `prediction_reader` made possible.
            examples: The examples that are predicted.
            loaded: What the task loaded.
            encoded: The tokenized examples of the run.
        """
        *inputs, answer = self.columns(loaded.recipe).values()
        given = {name: examples[name][:] for name in inputs}
        return prediction_table(given, answer, examples[answer][:], predicted.columns)

    def build_trainer(
        self,
        loaded: Loaded,
        encoded: Encoded,
        arguments: TrainingArguments,
        callbacks: Sequence[TrainerCallback] = (),
        trainer_class: type[Trainer] | None = None,
    ) -> Trainer:
        """Build the trainer.

        Args:
            loaded: What the task loaded.
            encoded: The tokenized examples.
            arguments: The training arguments, of `arguments_class`.
            callbacks: Callbacks to add.
            trainer_class: The class to build; None takes the task's `trainer_class`.
        """
        make: Any = trainer_class or self.trainer_class
        trainer = make(
            model=loaded.model,
            args=arguments,
            train_dataset=encoded.train,
            eval_dataset=encoded.validation,
            processing_class=loaded.tokenizer,
            callbacks=list(callbacks),
            **self.trainer_options(loaded, encoded, arguments),
        )
        trainer.mixture, trainer.stream = encoded.mixture, encoded.stream
        return trainer

    def settings(self, loaded: Loaded, **more: Any) -> dict[str, Any]:
        """Return the settings that inference needs: the task's, the base's dtype and the seed."""
        recipe = loaded.recipe
        return {**base_settings(recipe, loaded.model), "seed": seed_of(recipe), **more}

    def fresh_notes(self, loaded: Loaded) -> list[str]:
        """Return a note on freshly initialized weights that are trained, if any.

        Those of a second round have the values of the adapter that it starts from.
        """
        recipe, model = loaded.recipe, loaded.model
        fresh = fresh_modules(model) if recipe.start_from is None else ()
        if not fresh or not any(parameter.requires_grad for parameter in model.parameters()):
            return []
        seed = seed_of(recipe)
        names = ", ".join(fresh)
        return [f"New weights, initialized with seed {seed} and trained: {names}."]


def load_run_tokenizer(
    recipe: Recipe, saved: Path | None, **options: Any
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a run, see `Task.load_tokenizer`.

    Args:
        recipe: The recipe.
        saved: Directory of a tokenizer to load instead of the base's.
        options: Further options of `AutoTokenizer.from_pretrained`.
    """
    if saved is None:
        loaded = load_tokenizer(recipe.model, **loading_options(recipe), **options)
    else:
        options["trust_remote_code"] = recipe.trust_remote_code
        key = "start_from" if recipe.start_from is not None else str(saved)
        loaded = load_tokenizer(str(saved), key=key, is_adapter=True, **options)
    has_new_tokens = saved is not None or recipe.start_from is not None
    return loaded if has_new_tokens else add_new_tokens(loaded, recipe)


def learnt_labels(loaded: Loaded, splits: Splits) -> tuple[str, ...]:
    """Return the labels that an adapter has learnt before, which no training example needs to have.

    Args:
        loaded: What the task loaded; its labels are those of the adapter, if there is one.
        splits: The examples.
    """
    knows_labels = loaded.recipe.start_from is not None or splits.only_validation
    return loaded.labels or () if knows_labels else ()


def base_settings(recipe: Recipe, model: PreTrainedModel) -> dict[str, Any]:
    """Return the settings with which inference loads the base as it was in training."""
    how = recipe.quantization
    if how is not None:  # another device chooses its compute dtype
        return {"quantization": how.model_copy(update={"compute_dtype": "auto"})}
    return {"dtype": str(model.dtype).removeprefix("torch.")}


def save_settings(
    adapter_dir: str | Path,
    task_type: TaskType,
    labels: tuple[str, ...] | None,
    encoded: Encoded,
    lineage: Lineage | None = None,
    chosen: Mapping[str, Any] | None = None,
) -> Path:
    """Write the settings of a training run that inference needs beside an adapter, atomically.

    Args:
        adapter_dir: The adapter's directory, which exists.
        task_type: The task of the run.
        labels: Class or tag names by id, for tasks that have them.
        encoded: The result of the task's `encode`.
        lineage: What the adapter is made from.
        chosen: Further settings, chosen on the validation examples.

    Returns: The path of the file, `lorakit.json`.
    """
    values: dict[str, Any] = {"task_type": task_type, "labels": labels, "lineage": lineage}
    values |= {**encoded.settings, **(chosen or {})}
    return InferenceSettings(**values).save(adapter_dir)


def seed_of(recipe: Recipe) -> int:
    """Return the seed of a run: `training.seed`, or 42 as in transformers."""
    return int(recipe.training.get("seed", 42))


def loading_options(recipe: Recipe) -> dict[str, Any]:
    """Return the options for loading both model and tokenizer."""
    return {"revision": recipe.revision, "trust_remote_code": recipe.trust_remote_code}
