"""Losses of a classifier's logits: weighted classes, several labels, and numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lorakit.config import NOT_COUNTED
from lorakit.training.throughput import is_counted


class ExampleLoss(ABC):
    """A loss, summed over the labels of a batch that count."""

    @abstractmethod
    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss in training, a scalar.

        Args:
            logits: (batch, outputs), float32.
            labels: Class ids, (batch,), -100 where one does not count; or numbers, (batch,
                outputs) or (batch,), NaN where one does not count.
        """

    def sum_in_evaluation(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss in an evaluation; the arguments are those of `sum`."""
        return self.sum(logits, labels)


@dataclass(frozen=True)
class WeightedClasses(ExampleLoss):
    """Cross entropy, in training times the weight of the example's class.

    The mean over a step divides by the number of its examples, not by the sum of their weights, so
    an example of weight 2 counts twice whatever else is in its step.
    """

    weights: Tensor
    """Weight of each class, (classes,)."""
    label_smoothing: float = 0.0

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted cross entropy."""
        losses = F.cross_entropy(
            logits,
            labels,
            ignore_index=NOT_COUNTED,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )  # 0 where a label does not count
        return (losses * self.weights.to(logits)[labels.clamp(min=0)]).sum()

    def sum_in_evaluation(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy without weights, comparable between runs."""
        options: dict[str, Any] = {"reduction": "sum", "label_smoothing": self.label_smoothing}
        return F.cross_entropy(logits, labels, ignore_index=NOT_COUNTED, **options)


@dataclass(frozen=True)
class SeveralLabels(ExampleLoss):
    """Binary cross entropy of each label; labels are 0 or 1."""

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the summed binary cross entropy."""
        counted = is_counted(labels)
        return F.binary_cross_entropy_with_logits(
            logits, labels.to(logits).nan_to_num(), weight=counted.to(logits), reduction="sum"
        )


@dataclass(frozen=True)
class SquaredError(ExampleLoss):
    """Squared difference of each number."""

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the summed squared error."""
        targets = labels.view_as(logits)
        errors = logits - targets.to(logits).nan_to_num()
        return (errors.square() * is_counted(targets)).sum()
