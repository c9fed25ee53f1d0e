"""transformers' Seq2SeqTrainer, with a loss in chunks of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer

from lorakit.data.tokenize_examples import probe_tokens
from lorakit.training.losses.counted_labels import COUNTED
from lorakit.training.losses.find_output_loss import all_logits_note, find_output_loss
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.losses.token_loss import TokenLoss
from lorakit.training.step import MeanStep, OutputStep
from lorakit.training.trainers.step_trainer import StepTrainerMixin

_MADE_FROM_LABELS = ("labels", "decoder_input_ids", COUNTED)


class SequenceTrainer(StepTrainerMixin, Seq2SeqTrainer):
    """Seq2SeqTrainer with a loss in chunks of tokens, which supports adapted output layers.

    If the model transforms its logits in an unknown way, it computes its loss itself, and `notes`
    says so.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        output = self._find_loss(model)
        smoother = self.label_smoother
        if output is None:
            self.use_step(MeanStep(smoother=smoother))
        else:
            loss = TokenLoss(label_smoothing=0.0 if smoother is None else smoother.epsilon)
            self.use_step(OutputStep(output=output, token_loss=loss))

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

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **options: Any,
    ) -> tuple[Any, Any, Tensor | None]:
        """Evaluate a batch; if texts are generated, return these and the targets."""
        generates = self.args.predict_with_generate and not prediction_loss_only  # type: ignore[attr-defined]  # Seq2SeqTrainingArguments
        if not generates:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        sources = {key: value for key, value in inputs.items() if key not in _MADE_FROM_LABELS}
        _, generated, _ = Seq2SeqTrainer.prediction_step(
            self, model, sources, False, ignore_keys, **options
        )
        loss, _, _ = super().prediction_step(model, inputs, True)
        return loss, generated, self._prepare_inputs(inputs)["labels"]
