"""What all tasks share that predict something about a text, or a pair of texts, as a whole."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from lorakit.analysis.metrics import first_output
from lorakit.config import REGRESSION, SINGLE_LABEL, TaskType
from lorakit.data import Place, require_columns, unused_note
from lorakit.data.chunks import Batch
from lorakit.data.reading.positions import describe_examples
from lorakit.data.table_cache import TableCache
from lorakit.data.tokenize_examples import (
    IDS,
    map_examples,
    readable,
    require_texts,
    tokenize_texts,
)
from lorakit.data.tokenizers import tokenizer_digest
from lorakit.errors import ConfigError, DataError
from lorakit.inference.token_batches import classifying_token
from lorakit.models.pretrained import resolve_max_length
from lorakit.training.losses.example_losses import ExampleLoss
from lorakit.training.predicted import Predicted, prediction_table
from lorakit.training.tasks.base import Encoded, Loaded, PreviewExample, Task, learnt_labels
from lorakit.training.tasks.encode_splits import EncodedSplit, encode_splits
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.step_trainer import ClassifierTrainer

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import DataConfig, Recipe


class SequenceClassificationTrainer(AdapterTrainerMixin, ClassifierTrainer):
    """Trains an adapter of a text classifier."""


class TextTask(Task):
    """Predict a class, labels or numbers for each text; a subclass says which."""

    task_type: ClassVar[TaskType] = TaskType.SEQ_CLS
    base_trainer_class: ClassVar[type[Trainer]] = ClassifierTrainer
    trainer_class: ClassVar[type[Trainer]] = SequenceClassificationTrainer

    # ---- what a subclass says ----

    @abstractmethod
    def read_targets(self, examples: Dataset, data: DataConfig, where: Place | str) -> list[Any]:
        """Return the target of each example.

        Raises:
            DataError: A value is not a target.
        """

    @abstractmethod
    def encode_targets(self, targets: Sequence[Any], labels: Sequence[str]) -> list[Any]:
        """Return the targets as numbers for the loss."""

    @abstractmethod
    def target_feature(self, labels: Sequence[str]) -> Any:
        """Return the feature of an encoded target."""

    @abstractmethod
    def describe_target(self, target: Tensor, labels: Sequence[str]) -> str:
        """Return an encoded target in words, for the preview."""

    @abstractmethod
    def measure(self, targets: Any, logits: Any, labels: Sequence[str]) -> dict[str, float]:
        """Return the metrics of an evaluation, from arrays of encoded targets and logits."""

    @abstractmethod
    def example_loss(self, encoded: Encoded, label_smoothing: float) -> ExampleLoss | None:
        """Return the loss of the logits; None takes the model's."""

    def check_targets(
        self,
        targets: Sequence[Any],
        seen: Sequence[Any],
        learnt: Sequence[str],
        column: str,
        where: Place,
    ) -> None:
        """Refuse targets of a split that the training examples give no way to predict.

        Args:
            targets: The targets of the split.
            seen: Those of the training examples.
            learnt: Labels that the adapter has learnt before.
            column: Their column.
            where: Place of the split, for errors.
        """

    def target_notes(self, targets: Sequence[Any], labels: Sequence[str], column: str) -> list[str]:
        """Return notes on the targets of the training examples."""
        return []

    def class_weights(
        self, targets: Sequence[Any], labels: Sequence[str], splits: Splits, data: DataConfig
    ) -> tuple[float, ...] | None:
        """Return the weights of the classes in the training loss, if the recipe has any."""
        if data.class_weights is not None:
            raise ConfigError(
                f"Only classes have weights: got data.class_weights for {self.problem_type}, "
                f"expected {SINGLE_LABEL}. Leave it out."
            )
        return None

    # ---- the task ----

    def columns(self, recipe: Recipe) -> dict[str, str]:
        """Return the columns of texts and labels."""
        data = recipe.data
        columns = {"data.text": data.text, "data.label": data.label}
        return columns | ({"data.text_pair": data.text_pair} if data.text_pair else {})

    def label_column(self, recipe: Recipe) -> str | None:
        """Return the column of the labels, unless the recipe says that they are numbers."""
        return None if recipe.data.problem_type == REGRESSION else recipe.data.label

    def encode(self, splits: Splits, loaded: Loaded) -> Encoded:
        """Tokenize the texts and encode their targets."""
        data, tokenizer, names = loaded.recipe.data, loaded.tokenizer, loaded.labels or ()
        max_length = resolve_max_length(data.max_length, loaded.model, tokenizer)
        columns = self.columns(loaded.recipe)
        texts = {key: column for key, column in columns.items() if key != "data.label"}
        targets: dict[str, list[Any]] = {}
        for examples, kind, where in splits.with_places(data):
            require_columns(examples, columns, where)
            targets[kind] = self.read_targets(examples, data, where)
        learnt = learnt_labels(loaded, splits)

        def encode(examples: Dataset, kind: str, where: Place, cache: TableCache) -> EncodedSplit:
            self.check_targets(targets[kind], targets["training"], learnt, data.label, where)
            numbers, feature = self.encode_targets(targets[kind], names), self.target_feature(names)
            return _encode(examples, texts, numbers, feature, loaded, max_length, cache, where)

        notes = [
            *self.fresh_notes(loaded),
            *self.target_notes(targets["training"], names, data.label),
            *unused_note(splits.train, columns.values()),
        ]
        settings = self.settings(
            loaded,
            max_length=max_length,
            text_pair=data.text_pair is not None,
            problem_type=None if self.problem_type == SINGLE_LABEL else self.problem_type,
        )
        return replace(
            encode_splits(splits, data, max_length, encode, notes),
            settings=settings,
            class_weights=self.class_weights(targets["training"], names, splits, data),
        )

    def preview_example(self, example: dict[str, Any], loaded: Loaded) -> PreviewExample:
        """Return an example as the collator makes it; only the target counts."""
        batch = DataCollatorWithPadding(loaded.tokenizer)([example])
        tokens = readable(loaded.tokenizer, batch["input_ids"][0])
        note = self.describe_target(batch["labels"][0], loaded.labels or ())
        return PreviewExample(tokens, [False] * len(tokens), note)

    def trainer_options(
        self, loaded: Loaded, encoded: Encoded, arguments: TrainingArguments
    ) -> dict[str, Any]:
        """Return a collator that pads by batch, the loss and the metrics."""
        names = loaded.labels or ()
        smoothing = arguments.label_smoothing_factor
        if smoothing and self.problem_type != SINGLE_LABEL:
            raise ConfigError(
                "Only classes can be smoothed: got training.label_smoothing_factor="
                f"{smoothing} for {self.problem_type}, expected 0. Leave it out."
            )

        def metrics(prediction: EvalPrediction) -> dict[str, float]:
            return self.measure(prediction.label_ids, prediction.predictions, names)

        return {
            "data_collator": DataCollatorWithPadding(loaded.tokenizer),
            "compute_metrics": metrics,
            "preprocess_logits_for_metrics": first_output,
            "example_loss": self.example_loss(encoded, smoothing),
        }

    def prediction_columns(
        self, predicted: Predicted, examples: Dataset, loaded: Loaded, encoded: Encoded
    ) -> dict[str, list[Any]]:
        """Return texts, targets and predictions."""
        data = loaded.recipe.data
        columns = self.columns(loaded.recipe)
        answer = columns.pop("data.label")
        answers = self.read_targets(examples, data, Place("the validation examples"))
        inputs = {name: examples[name][:] for name in columns.values()}
        return prediction_table(inputs, answer, answers, predicted.columns)


def _encode(
    examples: Dataset,
    columns: dict[str, str],
    targets: list[Any],
    feature: Any,
    loaded: Loaded,
    max_length: int,
    cache: TableCache,
    where: Place,
) -> EncodedSplit:
    """Tokenize columns of texts beside their encoded targets.

    They may not contain the token at which the base classifies.
    """
    data, tokenizer = loaded.recipe.data, loaded.tokenizer
    end: Any = classifying_token(loaded.model)
    first = tokenizer("a", "b") if data.text_pair else tokenizer("a")
    ends = list(first["input_ids"]).count(end)
    features = {column: IDS for column in first} | {"labels": feature}

    def tokenize(batch: Batch, numbers: Sequence[int]) -> tuple[Batch, tuple[int]]:
        pairs = batch[data.text_pair] if data.text_pair else None
        made, cut = tokenize_texts(tokenizer, batch[data.text], pairs, max_length)
        counts = [ids.count(end) for ids in made["input_ids"]]
        wrong = [number for number, count in zip(numbers, counts, strict=True) if count != ends]
        if wrong:
            raise DataError(
                f"Texts contain the token at which the base classifies in {where}: got "
                f"{tokenizer.decode(end)!r} in {describe_examples(wrong, where)}, expected it at "
                "the end alone. Remove it from these texts, or leave them out."
            )
        return made | {"labels": [targets[number] for number in numbers]}, (cut,)

    names = list(columns.values())

    def identity() -> str:
        numbers = np.array(targets)
        digest = hashlib.sha256(numbers.tobytes()).hexdigest()
        kind = (feature, numbers.dtype, numbers.shape, end)
        return repr((names, max_length, kind, digest, tokenizer_digest(tokenizer)))

    texts = examples.select_columns(list(dict.fromkeys(names)))
    check = partial(require_texts, examples, columns, where)
    made, (cut,) = map_examples(texts, tokenize, features, identity, cache, check)
    return EncodedSplit(made, cut)
