"""transformers' Seq2SeqTrainer, with a loss in chunks of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer

from lorakit.data.tokenize_examples import probe_tokens
from lorakit.training.losses.counted_loss import CountedLossTrainer
from lorakit.training.losses.output_loss import (
    OutputLoss,
    TokenLoss,
    all_logits_note,
    find_output_loss,
)

_MADE_FROM_LABELS = ("labels", "decoder_input_ids")


class SequenceTrainer(CountedLossTrainer, Seq2SeqTrainer):
    """Seq2SeqTrainer with a loss in chunks of tokens, which supports adapted output layers.

    If the model transforms its logits in an unknown way, it computes its loss itself, and `notes`
    says so.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        self.notes: tuple[str, ...] = ()
        self._output_loss = self._find_loss(model)

    def _find_loss(self, model: Any) -> OutputLoss | None:
        ids = probe_tokens(self.train_dataset, "input_ids").to(model.device)
        labels = probe_tokens(self.train_dataset, "labels").to(model.device)
        try:
            decoder_ids = model.prepare_decoder_input_ids_from_labels(labels)
        except AttributeError:
            reason = "it does not derive the decoder's inputs from labels"
            self.notes = (all_logits_note(model, reason),)
            return None
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "decoder_input_ids": decoder_ids,
        }
        found, reason = find_output_loss(model, inputs, labels)
        if found is None:
            self.notes = (all_logits_note(model, reason),)
        return found

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
            inputs: A batch with labels and the decoder inputs made from them.
            return_outputs: Whether to return the model's outputs too, without logits.
            num_items_in_batch: Number of counted tokens of an optimizer step; None for this batch
                only.
        """
        if self._output_loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        given = {key: value for key, value in inputs.items() if key != "labels"}
        _, hidden = self._output_loss.run(model, given)
        smoother = self.label_smoother
        token_loss = TokenLoss(label_smoothing=0.0 if smoother is None else smoother.epsilon)
        labels = inputs["labels"]
        loss = self._output_loss.share(hidden, labels, token_loss, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        """Return a batch's loss and, if texts are generated, these and the targets."""
        generates = self.args.predict_with_generate and not prediction_loss_only  # type: ignore[attr-defined]
        if self._output_loss is None or not generates:
            return super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs
            )
        inputs = self._prepare_inputs(inputs)
        sources = {key: value for key, value in inputs.items() if key not in _MADE_FROM_LABELS}
        _, generated, _ = Seq2SeqTrainer.prediction_step(
            self, model, sources, False, ignore_keys, **gen_kwargs
        )
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        self.record_loss(loss, inputs["labels"])
        return loss, generated, inputs["labels"]
