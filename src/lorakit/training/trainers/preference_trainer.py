"""transformers' Trainer for objectives on preferences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForTokenClassification, Trainer

from lorakit.data.tokenize_examples import probe_tokens
from lorakit.errors import ConfigError
from lorakit.training.losses.find_output_loss import find_output_loss
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.objectives import Objective
from lorakit.training.objectives.preference_step import PreferenceStep
from lorakit.training.objectives.reference import disable_base_dropout
from lorakit.training.objectives.shared_prompts import can_share_prompts
from lorakit.training.step import OutputStep
from lorakit.training.trainers.batching import temporarily
from lorakit.training.trainers.reference_log_probs import ReferenceLogProbsMixin
from lorakit.training.trainers.step_trainer import StepTrainerMixin


class PreferenceTrainer(ReferenceLogProbsMixin, StepTrainerMixin, Trainer):
    """Trains a language model by an objective; one model is policy and reference.

    - Dropout of the base is off, since it would be noise in the ratio of policy and reference.
    - Where the model's attention takes a mask, the prompt is computed once for both answers.
    - The reference's log-probabilities are computed once for all epochs.
    """

    why_constant = (
        "The loss cannot move from its first value (ln 2 = 0.693 for dpo): the adapter does not "
        "act on the answers, or the two answers of each example are the same tokens"
    )
    step: Any

    def __init__(self, model: Any, *args: Any, objective: Objective, **kwargs: Any):
        """Create the trainer.

        Args:
            model: The model, with its adapter.
            args: Arguments of transformers' Trainer.
            objective: What is trained.
            kwargs: Arguments of transformers' Trainer; the collator is an `AnswerCollator`.
        """
        disable_base_dropout(model)
        super().__init__(model, *args, **kwargs)
        collator: Any = self.data_collator
        self.data_collator = replace(collator, shares_prompts=self._shares_prompts(model))
        if not self.data_collator.shares_prompts:
            self.notes = (
                f"The prompt of each example is computed once for each answer: this "
                f"{type(model).__name__} cannot share it.",
            )
        options: dict[str, Any] = {"use_cache": False}
        weight = _auxiliary_weight(model)
        if weight:
            options["output_router_logits"] = True
        output = self._find_loss(model)
        if output is None:
            raise ConfigError(
                f"This {type(model).__name__} cannot be trained by an objective: it names no "
                "output layer, expected a causal language model. Leave `objective` out."
            )
        self.use_step(
            PreferenceStep(
                options=options, output=output, objective=objective, auxiliary_weight=weight
            )
        )

    @contextmanager
    def as_language_model(self) -> Iterator[None]:
        """Evaluate encoded texts inside the block by the loss of their tokens."""
        tokenizer: Any = self.processing_class
        multiple = getattr(self.data_collator, "pad_to_multiple_of", None)
        step = OutputStep(output=self.step.output, options=self.step.options, shifts=True)
        collator = DataCollatorForTokenClassification(  # pads the labels too
            tokenizer, pad_to_multiple_of=multiple
        )
        with temporarily(self, step=step, data_collator=collator):
            yield

    def timed_batch(self, examples: list[Any]) -> dict[str, Tensor]:
        """Collate examples into inputs of the model, to time it with."""
        collate: Any = self.data_collator
        batch = replace(collate, shares_prompts=False)(examples)
        keys = ("input_ids", "attention_mask", "labels")
        return {key: batch[key].flatten(0, -2) for key in keys}

    def _find_loss(self, model: Any) -> OutputLoss | None:
        ids = probe_tokens(self.train_dataset, "input_ids").to(model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        found, reason = find_output_loss(model, inputs, ids)
        if found is None:
            raise ConfigError(
                f"This {type(model).__name__} cannot be trained by an objective: {reason}; "
                "expected a model whose loss is the cross entropy of its output layer. Leave "
                "`objective` out."
            )
        return found

    def _shares_prompts(self, model: Any) -> bool:
        ids = probe_tokens(self.train_dataset, "input_ids")[0].tolist()
        return can_share_prompts(model, ids, self.precision(model))


def _auxiliary_weight(model: Any) -> float:
    """Return the weight of a mixture of experts' auxiliary loss, 0 if it is off."""
    config = model.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return 0.0
    return float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)
