"""transformers' Trainer for classifiers, whose loss is the mean over all labels of a step."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from lorakit.training.step import MeanStep
from lorakit.training.trainers.step_trainer import StepTrainerMixin


class ClassifierTrainer(StepTrainerMixin, Trainer):
    """Trainer for models whose loss is the mean over the labels of a batch."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.use_step(MeanStep(smoother=self.label_smoother))
