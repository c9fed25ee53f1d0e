"""One training step: from a batch to its share of the loss and the number of labels that count.

Training, evaluation, planning on fake tensors and data-driven initialization compute their losses
here. There is no Trainer inside, and nothing is read from the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lorakit.analysis.example_scores import Metric
from lorakit.training.losses.counted_answers import CountedAnswers, count_answers
from lorakit.training.losses.counted_labels import CountedLabels, count_labels, split_batch
from lorakit.training.losses.example_losses import ExampleLoss
from lorakit.training.losses.losses_by_text import losses_by_text, losses_from_logits
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.losses.token_loss import TokenLoss

if TYPE_CHECKING:
    from transformers.trainer_pt_utils import LabelSmoother


Measures = Mapping[str, Tensor]
"""What a step measures besides its loss, by name: sum and count, (2,) without a graph each."""
_NOTHING: Measures = MappingProxyType({})


class Share(NamedTuple):
    """A batch's share of the mean loss of an optimizer step."""

    loss: Tensor
    """Scalar, float32 at least, with its graph."""
    counted: CountedLabels
    outputs: Any
    """The model's outputs."""
    measures: Measures = _NOTHING


class Evaluated(NamedTuple):
    """What a batch adds to an evaluation: sums over the labels that count."""

    loss: Tensor
    """Summed loss, a scalar on the device, in float64 where it has that."""
    labels: int
    hits: Tensor | None
    """Number of correct top predictions, a scalar on the device; None if they are not computed."""
    outputs: Any
    """The model's outputs, None if they lack the logits."""
    examples: Tensor | None = None
    """Points and weights of each text or pair of answers by the step's metric, (examples, 2) on the
    device, such as its negative log-likelihood and number of labels; None for classifiers of whole
    texts. An example without weight is padding."""
    measures: Measures = _NOTHING

    def sums(self) -> Tensor:
        """Return loss, labels and hits, (3,) on the device; NaN for hits that are not computed."""
        labels = torch.full_like(self.loss, self.labels)
        hits = torch.full_like(self.loss, torch.nan) if self.hits is None else self.hits
        return torch.stack([self.loss, labels, hits.to(self.loss.dtype)])


@dataclass(kw_only=True)
class Step(ABC):
    """Computes the loss of a model on a batch.

    A batch has "labels", -100 where one does not count, and, made by a `CountingCollator`, its
    `CountedLabels`. Without these the labels are counted here, which reads them.
    """

    compares_answers: ClassVar[bool] = False
    """Whether an example is two answers to one prompt."""
    shifts: bool = False
    """Whether a token's target is the next label, as in causal language models."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further inputs of the model."""

    @abstractmethod
    def share(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        counted_in_step: float | Tensor | None = None,
        batches: int = 1,
    ) -> Share:
        """Return a batch's share of the mean loss of an optimizer step.

        Args:
            model: The model, possibly wrapped.
            batch: A batch with labels.
            counted_in_step: Number of labels that count in all batches of the step; with several
                processes, whose gradients are averaged, their mean. None gives the mean over this
                batch. If nothing counts, the loss is zero.
            batches: Number of batches of the step in this process.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Mapping[str, Any]) -> Evaluated:
        """Return what a batch adds to an evaluation, without a graph."""

    @property
    def metric(self) -> Metric:
        """What the scores of evaluated examples are."""
        return "perplexity"

    @property
    def count(self) -> Callable[[Mapping[str, Any]], CountedLabels]:
        """The function that counts the labels of a batch; a collator carries it to processes."""
        return partial(count_labels, shifts=self.shifts)

    def split(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Return the model's inputs, with labels, and the labels that count."""
        inputs, counted = split_batch(batch, self.count)
        return {**inputs, **self.options}, counted

    def mean_loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean loss of a batch, whose gradients are exact for every parameter.

        Where the output layer is trained, the gradient of a sum in chunks, which is scaled
        afterwards, would not do.
        """
        return MeanStep(shifts=self.shifts).share(model, batch).loss


@dataclass(kw_only=True)
class AnswersStep(Step):
    """A loss that compares two answers to each prompt."""

    compares_answers: ClassVar[bool] = True

    @property
    def count(self) -> Callable[[Mapping[str, Any]], CountedAnswers]:
        """The function that counts the answers of a batch."""
        return count_answers

    def split(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], CountedAnswers]:
        """Return the parts of a batch, and the answers that count."""
        return split_batch(batch, self.count)

    def mean_loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean loss of a batch."""
        return self.share(model, batch).loss


@dataclass(kw_only=True)
class MeanStep(Step):
    """A model's own loss, the mean over the labels of a batch that count.

    transformers would let some of these models divide by the labels of a step. Its classifiers do
    not, so the loss of accumulated batches would be too large by their number.
    """

    smoother: LabelSmoother | None = None
    """transformers' label smoothing, computed from the model's logits; None takes its own loss."""
    smooths_evaluation: bool = True

    def share(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        counted_in_step: float | Tensor | None = None,
        batches: int = 1,
    ) -> Share:
        """Return the mean loss of a batch, weighted by its number of labels."""
        loss, counted, outputs, _ = self._mean(model, batch, self.smoother)
        if counted_in_step is not None:
            loss = loss * (counted.labels / at_least_one(counted_in_step))
        return Share(loss, counted, outputs)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Mapping[str, Any]) -> Evaluated:
        """Return the summed loss of a batch and the model's outputs, without a graph."""
        smoother = self.smoother if self.smooths_evaluation else None
        loss, counted, outputs, _ = self._mean(model, batch, smoother)
        texts = losses_from_logits(outputs, batch, counted)
        return Evaluated(in_float64(loss) * counted.labels, counted.labels, None, outputs, texts)

    def _mean(
        self, model: nn.Module, batch: Mapping[str, Any], smoother: LabelSmoother | None
    ) -> Share:
        inputs, counted = self.split(batch)
        if smoother is None and counted.labels:
            outputs = model(**inputs)
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        else:
            labels = inputs["labels"]
            if self.shifts:  # other models may derive their decoder's inputs from labels
                del inputs["labels"]
            outputs = model(**inputs)
            if not counted.labels:
                loss = 0.0 * outputs.logits.float().sum()
            else:
                loss = smoother(outputs, labels, shift_labels=self.shifts)  # type: ignore[misc]  # there without counted labels
        return Share(wide(loss), counted, outputs)


@dataclass(kw_only=True)
class LogitsStep(Step):
    """A loss of a classifier's logits, the mean over the labels that count."""

    loss: ExampleLoss

    def share(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        counted_in_step: float | Tensor | None = None,
        batches: int = 1,
    ) -> Share:
        """Return the summed loss of a batch over the number of labels of the step."""
        logits, labels, counted, outputs = self._logits(model, batch)
        loss = mean_over_step(self.loss.sum(logits, labels), counted, counted_in_step)
        return Share(loss, counted, outputs)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Mapping[str, Any]) -> Evaluated:
        """Return the summed loss of a batch and the model's outputs, without a graph."""
        logits, labels, counted, outputs = self._logits(model, batch)
        loss = self.loss.sum_in_evaluation(logits, labels)
        return Evaluated(in_float64(loss), counted.labels, None, outputs)

    def _logits(
        self, model: nn.Module, batch: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, CountedLabels, Any]:
        inputs, counted = self.split(batch)
        labels: Tensor = inputs.pop("labels")
        outputs = model(**inputs)
        return wide(outputs.logits), labels, counted, outputs


@dataclass(kw_only=True)
class OutputStep(Step):
    """The loss of a language model in chunks of tokens, from the inputs of its output layer."""

    output: OutputLoss
    token_loss: TokenLoss = field(default_factory=TokenLoss)
    auxiliary_weight: float = 0.0
    """Weight of a mixture of experts' auxiliary loss; 0 for none."""
    smooths_evaluation: bool = True
    """Whether an evaluation has the loss of training, rather than the log-likelihood."""

    def share(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        counted_in_step: float | Tensor | None = None,
        batches: int = 1,
    ) -> Share:
        """Return the summed loss of a batch over the number of labels of the step."""
        outputs, hidden, counted = self.hidden(model, batch)
        loss = self.output.sum(hidden, counted.targets.to(hidden.device), self.token_loss)
        loss = mean_over_step(wide(loss), counted, counted_in_step)
        if self.auxiliary_weight:
            loss = loss + self.auxiliary_weight * outputs.aux_loss / batches
        return Share(loss, counted, outputs)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Mapping[str, Any]) -> Evaluated:
        """Return the summed loss of a batch and of its texts, and the hits, without a graph."""
        _, hidden, counted = self.hidden(model, batch)
        targets = counted.targets.to(hidden.device)
        losses, hits = self.output.losses_and_hits(hidden, targets)
        loss = losses.sum()
        if self.smooths_evaluation and not self.token_loss.is_plain:
            loss = self.output.sum(hidden, targets, self.token_loss)
        texts = losses_by_text(losses, counted, batch)
        return Evaluated(in_float64(loss), counted.labels, hits, None, texts)

    def hidden(
        self, model: nn.Module, batch: Mapping[str, Any]
    ) -> tuple[Any, Tensor, CountedLabels]:
        """Run the model; return outputs, inputs of the output layer (labels, in), and labels."""
        inputs, counted = self.split(batch)
        del inputs["labels"]
        outputs, hidden = self.output.run(model, inputs)
        return outputs, counted.select(hidden), counted


def mean_over_step(
    loss: Tensor, counted: CountedLabels, counted_in_step: float | Tensor | None
) -> Tensor:
    """Return the summed loss of a batch over the number of labels of the step, or of the batch."""
    return loss / at_least_one(counted.labels if counted_in_step is None else counted_in_step)


def at_least_one(counted: float | Tensor) -> float | Tensor:
    """Return a count, or 1 for 0; the mean of several processes may lie between."""
    if isinstance(counted, Tensor):
        return torch.where(counted == 0, torch.ones_like(counted), counted)
    return counted or 1


def wide(loss: Tensor) -> Tensor:
    """Return a loss in float32 at least."""
    return loss.to(torch.promote_types(loss.dtype, torch.float32))


def in_float64(number: Tensor) -> Tensor:
    """Return a scalar in float64, or float32 where a device lacks it, without a graph."""
    has_float64 = number.device.type != "mps"
    return number.detach().to(torch.float64 if has_float64 else torch.float32)
