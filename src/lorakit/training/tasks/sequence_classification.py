"""SEQ_CLS: one label for a text or a pair of texts, with transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import Dataset, Value
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from lorakit.analysis.metric_text import classification_metric_names
from lorakit.analysis.metrics import classification_metrics, first_output
from lorakit.config import TaskType
from lorakit.data import Place, require_columns, unused_note
from lorakit.data.labels import label_names, label_notes, ordered_label_names, require_seen
from lorakit.data.tokenize_examples import (
    IDS,
    cut_note,
    first_examples,
    map_examples,
    readable,
    require_texts,
    tokenize_texts,
)
from lorakit.errors import DataError
from lorakit.models.pretrained import resolve_max_length
from lorakit.training.predicted import (
    Evaluated,
    Predicted,
    predicted_classes,
    prediction_table,
)
from lorakit.training.tasks.base import Encoded, PreviewExample, Task, learnt_labels
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.step_trainer import ClassifierTrainer

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import DataConfig, Recipe


class SequenceClassificationTrainer(AdapterTrainerMixin, ClassifierTrainer):
    """Trains an adapter of a text classifier."""


class SequenceClassification(Task):
    """Classify texts."""

    task_type: ClassVar[TaskType] = TaskType.SEQ_CLS
    best_metric: ClassVar[str] = "eval_accuracy"
    greater_is_better: ClassVar[bool] = True
    base_trainer_class: ClassVar[type[Trainer]] = ClassifierTrainer
    trainer_class: ClassVar[type[Trainer]] = SequenceClassificationTrainer

    def arguments_class(self) -> type[TrainingArguments]:
        """Return transformers' TrainingArguments."""
        return TrainingArguments

    def columns(self, recipe: Recipe) -> dict[str, str]:
        """Return the columns of texts and labels."""
        return _columns(recipe.data)

    def label_column(self, recipe: Recipe) -> str:
        """Return the column of the classes."""
        return recipe.data.label

    def labels(self, splits: Splits, recipe: Recipe) -> tuple[str, ...]:
        """Return the class names: those of a ClassLabel feature, else those found, sorted."""
        data = recipe.data
        where = splits.training_place(data)
        names = ordered_label_names(splits.train, data.label, where)
        if len(names) < 2:
            raise DataError(
                f"Nothing to classify in {where}, column '{data.label}': got only the label "
                f"'{''.join(names)}', expected at least 2. Name the right column in data.label."
            )
        return names

    def encode(
        self,
        splits: Splits,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labels: tuple[str, ...] | None,
    ) -> Encoded:
        """Tokenize the texts and number the labels."""
        data = recipe.data
        max_length = resolve_max_length(data.max_length, model, tokenizer)
        parts = splits.with_places(data)
        names = {kind: _checked_labels(examples, data, where) for examples, kind, where in parts}
        encoded: dict[str, Dataset] = {}
        cuts: dict[str, int] = {}
        notes = self.fresh_notes(recipe, model)
        notes += label_notes(labels or (), data.label)
        notes += unused_note(splits.train, _columns(data).values())
        for examples, kind, where in parts:
            seen = learnt_labels(recipe, labels, names["training"])
            require_seen(seen, [[name] for name in names[kind]], data.label, where)
            tokens, cuts[kind] = _encode(
                examples, names[kind], data, tokenizer, labels or (), max_length
            )
            encoded[kind] = tokens
            notes += cut_note(cuts[kind], len(examples), max_length, kind)
        pair = data.text_pair is not None
        settings = self.settings(recipe, model, max_length=max_length, text_pair=pair)
        return Encoded(
            *(encoded["training"], encoded.get("validation"), tuple(notes), settings),
            cut_examples=cuts["training"],
        )

    def preview_examples(
        self,
        encoded: Encoded,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
        n: int = 2,
    ) -> list[PreviewExample]:
        """Return the first examples as the collator batches them; only the label counts."""
        batch = DataCollatorWithPadding(tokenizer)(first_examples(encoded.train, n))
        previews = []
        for ids, mask, label in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            tokens = readable(tokenizer, ids[mask.bool()])
            name = labels[int(label)] if labels else str(int(label))
            previews.append(PreviewExample(tokens, [False] * len(tokens), f"label: {name}"))
        return previews

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return loss, accuracy, macro averages, and metrics that depend on the classes."""
        return ("loss", *classification_metric_names(labels or ()))

    def trainer_options(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: TrainingArguments,
        labels: tuple[str, ...] | None,
    ) -> dict[str, Any]:
        """Return a collator that pads by batch, and the classification metrics."""
        names = tuple(labels or ())

        def metrics(prediction: EvalPrediction) -> dict[str, float]:
            return classification_metrics(prediction.label_ids, prediction.predictions, names)

        return {
            "data_collator": DataCollatorWithPadding(tokenizer),
            "compute_metrics": metrics,
            "preprocess_logits_for_metrics": first_output,
        }

    def prediction_reader(
        self, labels: tuple[str, ...] | None, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[[Evaluated], Predicted]:
        """Return what reads classes and their probabilities."""
        return lambda found: predicted_classes(found, labels or ())

    def prediction_columns(
        self,
        predicted: Predicted,
        examples: Dataset,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Encoded,
    ) -> dict[str, list[Any]]:
        """Return texts, classes, predicted classes and their probabilities."""
        columns = _columns(recipe.data)
        answer = columns.pop("data.label")
        answers = label_names(examples, answer, Place("the validation examples"))
        inputs = {name: examples[name][:] for name in columns.values()}
        return prediction_table(inputs, answer, answers, predicted.columns)


def _columns(data: DataConfig) -> dict[str, str]:
    columns = {"data.text": data.text, "data.label": data.label}
    return columns | ({"data.text_pair": data.text_pair} if data.text_pair else {})


def _checked_labels(examples: Dataset, data: DataConfig, where: Place) -> list[str]:
    """Check the columns and texts of a split and return its labels."""
    columns = _columns(data)
    require_columns(examples, columns, where)
    columns.pop("data.label")
    require_texts(examples, columns, where)
    return label_names(examples, data.label, where)


def _encode(
    examples: Dataset,
    names: Sequence[str],
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    max_length: int,
) -> tuple[Dataset, int]:
    ids = {label: index for index, label in enumerate(labels)}
    given = {"text": examples[data.text][:], "labels": [ids[name] for name in names]}
    if data.text_pair:
        given["pair"] = examples[data.text_pair][:]
    cuts: list[int] = []

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns, cut = tokenize_texts(tokenizer, batch["text"], batch.get("pair"), max_length)
        cuts.append(cut)
        return columns | {"labels": batch["labels"]}

    first = tokenizer("a", "b") if data.text_pair else tokenizer("a")
    features = {column: IDS for column in first} | {"labels": Value("int64")}
    return map_examples(Dataset.from_dict(given), tokenize, features), sum(cuts)
