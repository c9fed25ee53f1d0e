"""transformers' Trainer for a reward model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from lorakit.training.objectives.reference import disable_base_dropout
from lorakit.training.objectives.reward import RewardStep
from lorakit.training.trainers.step_trainer import StepTrainerMixin


class RewardTrainer(StepTrainerMixin, Trainer):
    """Trains a classifier of one output to score the chosen answer higher.

    Dropout of the base is off, since it would be noise in the difference of two scores.
    """

    def __init__(self, model: Any, *args: Any, center_rewards: float = 0.0, **kwargs: Any):
        """Create the trainer.

        Args:
            model: The model, with its adapter.
            args: Arguments of transformers' Trainer.
            center_rewards: Weight of the squared sum of the scores of a pair.
            kwargs: Arguments of transformers' Trainer; the collator is an `AnswerCollator`.
        """
        disable_base_dropout(model)
        super().__init__(model, *args, **kwargs)
        self.use_step(RewardStep(center_rewards=center_rewards))

    def timed_batch(self, examples: list[Any]) -> dict[str, Tensor]:
        """Collate examples into inputs of the model, to time it with."""
        collate: Any = self.data_collator
        batch = collate(examples)
        rows = {key: batch[key].flatten(0, -2) for key in ("input_ids", "attention_mask")}
        return {**rows, "labels": torch.zeros(len(rows["input_ids"]))}
