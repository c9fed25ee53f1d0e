"""A loss that is the mean over all that counts in a step, however its rows are dealt out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from lorakit.config import NOT_COUNTED


class CountedLossTrainer(Trainer):
    """Trainer for models whose loss is the mean over the labels of a batch.

    A step's loss is the mean over the labels of all its batches, those of other processes
    included, and `eval_loss` that over all labels there are. Left to itself the Trainer takes
    any model with `**kwargs` for one that divides by the labels of a step; transformers'
    classifiers do not, so the loss of accumulated batches would be too large by their number.
    """

    _loss_sum: float = 0.0
    _labels_seen: int = 0

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # what counts in a step is to be counted
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
            model: The model, or what wraps it.
            inputs: A batch with labels, -100 where one does not count.
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: Labels that count in the step; None for this batch's own.
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
        """Return the model's own mean over a batch, zero where nothing counts, and its outputs."""
        if not counted:
            outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
            return 0.0 * outputs.logits.float().sum(), outputs
        accepts, self.model_accepts_loss_kwargs = self.model_accepts_loss_kwargs, False
        try:  # the Trainer's own: it is not to hand the model a number
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
        """Predict a batch, and remember what its loss is the mean of."""
        self.model_accepts_loss_kwargs = False  # the loss is to be this batch's own
        try:
            result = super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys, **options
            )
        finally:
            self.model_accepts_loss_kwargs = True
        self.remember_loss(result[0], inputs["labels"])
        return result

    def remember_loss(self, loss: Tensor | None, labels: Tensor) -> None:
        """Add a batch's mean loss to that of the whole evaluation."""
        counted = int((labels != NOT_COUNTED).sum())
        if loss is not None and counted:
            self._loss_sum += float(loss) * counted
            self._labels_seen += counted

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the loss is the mean over all labels together, not over batches."""
        self._loss_sum, self._labels_seen = 0.0, 0
        output = super().evaluation_loop(*args, **kwargs)
        sums = torch.tensor([self._loss_sum, self._labels_seen], device=self.args.device)
        loss_sum, seen = self.accelerator.reduce(sums, "sum").tolist()  # type: ignore[union-attr]
        if seen and output.metrics is not None:
            output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = loss_sum / seen
        return output
