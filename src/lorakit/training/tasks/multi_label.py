"""SEQ_CLS with any number of labels for a text: binary cross entropy of each label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import Dataset, List, Value
from torch import Tensor

from lorakit.analysis.baselines import Guess, guess_label_set
from lorakit.analysis.target_metrics import (
    best_thresholds,
    multi_label_metric_names,
    multi_label_metrics,
)
from lorakit.config import MULTI_LABEL, ProblemType
from lorakit.data import Place
from lorakit.data.labels import label_notes, require_seen, sort_labels
from lorakit.data.targets import known_labels, label_sets
from lorakit.errors import DataError
from lorakit.training.losses.example_losses import ExampleLoss, SeveralLabels
from lorakit.training.predicted import Evaluated, Predicted, predict_label_sets
from lorakit.training.tasks.base import Encoded, Loaded
from lorakit.training.tasks.text_task import TextTask

if TYPE_CHECKING:
    from lorakit.adapters.inference_settings import InferenceSettings
    from lorakit.data import Splits
    from lorakit.recipes.recipe import DataConfig, Recipe


class MultiLabelClassification(TextTask):
    """Give texts all labels that apply.

    In training, each evaluation chooses the thresholds with the best F1 on its own examples; those
    of the final weights are saved with the adapter.
    """

    problem_type: ClassVar[ProblemType | None] = MULTI_LABEL
    best_metric: ClassVar[str] = "eval_ranking_average_precision"
    greater_is_better: ClassVar[bool] = True

    def __init__(self, settings: InferenceSettings | None = None):
        """Create the task.

        Args:
            settings: Settings of an adapter, whose thresholds apply; None for training.
        """
        self._settings = settings

    def with_settings(self, settings: InferenceSettings) -> MultiLabelClassification:
        """Return the task with the thresholds of an adapter."""
        return MultiLabelClassification(settings)

    def labels(self, splits: Splits, recipe: Recipe) -> tuple[str, ...]:
        """Return the labels: those of a ClassLabel feature, else those found, sorted."""
        column, where = recipe.data.label, splits.training_place(recipe.data)
        sets = label_sets(splits.train, column, where)
        names = known_labels(splits.train, column) or sort_labels(n for one in sets for n in one)
        if not names and not splits.only_validation:
            raise DataError(
                f"Nothing to learn from {where}, column '{column}': got no label in any example, "
                "expected at least 1. Name the right column in data.label."
            )
        return names

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return loss, averages of F1, ranking average precision, and F1 of each label."""
        return ("loss", *multi_label_metric_names(labels or ()))

    def measure(self, targets: Any, logits: Any, labels: Sequence[str]) -> dict[str, float]:
        """Return the metrics, at the thresholds of the adapter or at those chosen now."""
        return multi_label_metrics(targets, logits, labels, self._thresholds(targets, logits))

    def _thresholds(self, targets: Any, logits: Any) -> tuple[float, ...]:
        if self._settings is None:
            return best_thresholds(targets, logits)
        return self._settings.thresholds

    def example_loss(self, encoded: Encoded, label_smoothing: float) -> ExampleLoss:
        """Return the binary cross entropy."""
        return SeveralLabels()

    def read_targets(self, examples: Dataset, data: DataConfig, where: Place | str) -> list[Any]:
        """Return the labels of each example."""
        return label_sets(examples, data.label, where)

    def check_targets(
        self,
        targets: Sequence[Any],
        seen: Sequence[Any],
        learnt: Sequence[str],
        column: str,
        where: Place,
    ) -> None:
        """Refuse labels that no training example has."""
        require_seen({*learnt, *(n for names in seen for n in names)}, targets, column, where)

    def encode_targets(self, targets: Sequence[Any], labels: Sequence[str]) -> list[Any]:
        """Return 1 for each label that an example has, else 0."""
        return [[float(label in names) for label in labels] for names in map(set, targets)]

    def target_feature(self, labels: Sequence[str]) -> Any:
        """Return the feature of a number for each label."""
        return List(Value("float32"))

    def describe_target(self, target: Tensor, labels: Sequence[str]) -> str:
        """Return the labels of an example."""
        there = [label for label, has in zip(labels, target.tolist(), strict=True) if has]
        return f"labels: {', '.join(there) or 'none'}"

    def target_notes(self, targets: Sequence[Any], labels: Sequence[str], column: str) -> list[str]:
        """Return notes on what is learned, and on labels with spaces around them."""
        each = sum(map(len, targets)) / len(targets)
        return [
            f"Each text has any of {len(labels)} labels, {each:.2g} on average "
            f"(data.problem_type={MULTI_LABEL}).",
            *label_notes(labels, column),
        ]

    def prediction_reader(self, loaded: Loaded) -> Callable[[Evaluated], Predicted]:
        """Return what reads labels and their probabilities, and chooses thresholds."""
        return lambda found: predict_label_sets(
            found, loaded.labels or (), self._thresholds(found.label_ids, found.scores)
        )

    def blind_guess(self, known: Any, examples: Any, labels: Sequence[str]) -> Guess:
        """Return the commonest labels."""
        return guess_label_set(known["labels"][:], examples["labels"][:], labels)
