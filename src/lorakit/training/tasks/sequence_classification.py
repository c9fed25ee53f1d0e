"""SEQ_CLS: one class for a text or a pair of texts, with transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset, Value
from torch import Tensor

from lorakit.analysis.baselines import Guess, guess_class
from lorakit.analysis.metric_text import classification_metric_names
from lorakit.analysis.metrics import classification_metrics
from lorakit.config import SINGLE_LABEL, ProblemType
from lorakit.data import Place
from lorakit.data.labels import label_names, label_notes, require_seen, sort_label_names
from lorakit.data.targets import class_weights_of
from lorakit.errors import DataError
from lorakit.training.losses.example_losses import ExampleLoss, WeightedClasses
from lorakit.training.predicted import Evaluated, Predicted, predict_classes
from lorakit.training.tasks.base import Encoded, Loaded
from lorakit.training.tasks.text_task import TextTask

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import DataConfig, Recipe


class SequenceClassification(TextTask):
    """Classify texts."""

    problem_type: ClassVar[ProblemType | None] = SINGLE_LABEL
    best_metric: ClassVar[str] = "eval_accuracy"
    greater_is_better: ClassVar[bool] = True

    def labels(self, splits: Splits, recipe: Recipe) -> tuple[str, ...]:
        """Return the class names: those of a ClassLabel feature, else those found, sorted."""
        data = recipe.data
        where = splits.labelled_place(data)
        names = sort_label_names(splits.labelled, data.label, where)
        if len(names) < 2 and not splits.only_validation:
            raise DataError(
                f"Nothing to classify in {where}, column '{data.label}': got only the label "
                f"'{''.join(names)}', expected at least 2. Name the right column in data.label."
            )
        return names

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return loss, accuracy, macro averages, and metrics that depend on the classes."""
        return ("loss", *classification_metric_names(labels or ()))

    def measure(self, targets: Any, logits: Any, labels: Sequence[str]) -> dict[str, float]:
        """Return the classification metrics."""
        return classification_metrics(targets, logits, labels)

    def read_targets(self, examples: Dataset, data: DataConfig, where: Place | str) -> list[Any]:
        """Return the class of each example."""
        return label_names(examples, data.label, where)

    def check_targets(
        self,
        targets: Sequence[Any],
        seen: Sequence[Any],
        learnt: Sequence[str],
        column: str,
        where: Place,
    ) -> None:
        """Refuse classes that no training example has."""
        require_seen({*seen, *learnt}, [[name] for name in targets], column, where)

    def encode_targets(self, targets: Sequence[Any], labels: Sequence[str]) -> list[Any]:
        """Return the id of each class."""
        ids = {label: index for index, label in enumerate(labels)}
        return [ids[name] for name in targets]

    def target_feature(self, labels: Sequence[str]) -> Any:
        """Return the feature of a class id."""
        return Value("int64")

    def describe_target(self, target: Tensor, labels: Sequence[str]) -> str:
        """Return the name of a class."""
        return f"label: {labels[int(target)] if labels else int(target)}"

    def target_notes(self, targets: Sequence[Any], labels: Sequence[str], column: str) -> list[str]:
        """Return a note on labels with spaces around them."""
        return label_notes(labels, column)

    def class_weights(
        self, targets: Sequence[Any], labels: Sequence[str], splits: Splits, data: DataConfig
    ) -> tuple[float, ...] | None:
        """Return the weights of the classes in the training loss, if the recipe has any."""
        draws = None if splits.mixture is None else splits.mixture.mean_draws().tolist()
        return class_weights_of(data.class_weights, targets, labels, draws)

    def example_loss(self, encoded: Encoded, label_smoothing: float) -> ExampleLoss | None:
        """Return the cross entropy with the weights of the classes, if the recipe has any."""
        if encoded.class_weights is None:
            return None
        return WeightedClasses(torch.tensor(encoded.class_weights), label_smoothing)

    def prediction_reader(self, loaded: Loaded) -> Callable[[Evaluated], Predicted]:
        """Return what reads classes and their probabilities."""
        return lambda found: predict_classes(found, loaded.labels or ())

    def blind_guess(self, known: Any, examples: Any, labels: Sequence[str]) -> Guess:
        """Return the commonest class."""
        return guess_class(known["labels"], examples["labels"][:], labels)
