"""A trainer whose loss is the mean over all labels of a step, however examples are batched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from lorakit.config import NOT_COUNTED


class CountedLossTrainer(Trainer):
    """Trainer for models whose loss is the mean over the labels of a batch.

    The loss of a step is the mean over the labels of all its batches, including those of other
    processes, and `eval_loss` is the mean over all labels. The Trainer assumes that any model with
    `**kwargs` divides by the labels of a step. transformers' classifiers do not, so the loss of
    accumulated batches would be too large by their number.
    """

    _loss_sum: float = 0.0
    _labels_seen: int = 0

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # makes the Trainer count the labels of a step
        self._loss_shifts_labels = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the mean loss of a batch, or its share of the mean over a step.

        Args:
            model: The model, possibly wrapped.
            inputs: A batch with labels, -100 where one does not count.
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: Number of labels that count in the step; None for this batch only.
        """
        counted = int((inputs["labels"] != NOT_COUNTED).sum())
        loss, outputs = self.mean_loss(model, inputs, counted)
        if num_items_in_batch is not None:
            loss = loss * (counted / torch.as_tensor(num_items_in_batch).clamp(min=1))
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def mean_loss(
        self, model: nn.Module, inputs: dict[str, Any], counted: int
    ) -> tuple[Tensor, Any]:
        """Return the model's mean loss over a batch, zero if nothing counts, and its outputs."""
        if not counted:
            outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
            return 0.0 * outputs.logits.float().sum(), outputs
        accepts, self.model_accepts_loss_kwargs = self.model_accepts_loss_kwargs, False
        try:  # the Trainer's loss, without passing the number of labels to the model
            return super().compute_loss(model, {**inputs}, return_outputs=True)  # type: ignore[return-value]
        finally:
            self.model_accepts_loss_kwargs = accepts

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **options: Any,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Predict a batch, and record its loss and number of labels."""
        self.model_accepts_loss_kwargs = False  # the mean over this batch only
        try:
            result = super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys, **options
            )
        finally:
            self.model_accepts_loss_kwargs = True
        self.record_loss(result[0], inputs["labels"])
        return result

    def record_loss(self, loss: Tensor | None, labels: Tensor) -> None:
        """Add a batch's mean loss to the loss of the evaluation."""
        counted = int((labels != NOT_COUNTED).sum())
        if loss is not None and counted:
            self._loss_sum += float(loss) * counted
            self._labels_seen += counted

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the loss is the mean over all labels, not over batches."""
        self._loss_sum, self._labels_seen = 0.0, 0
        output = super().evaluation_loop(*args, **kwargs)
        sums = torch.tensor([self._loss_sum, self._labels_seen], device=self.args.device)
        loss_sum, seen = self.accelerator.reduce(sums, "sum").tolist()  # type: ignore[union-attr]
        if seen and output.metrics is not None:
            output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = loss_sum / seen
        return output
