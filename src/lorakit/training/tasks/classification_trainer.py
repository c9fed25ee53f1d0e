"""transformers' Trainer, with a loss that does not grow with gradient accumulation."""

from typing import Any

from transformers import Trainer


class ClassificationTrainer(Trainer):
    """Trainer for classifiers, whose loss is the mean of a batch.

    Of accumulated batches the loss is the mean of their losses. Left to itself the Trainer takes
    any model with `**kwargs` for one that divides by the number of labels in all accumulated
    batches; transformers' classifiers do not, so their loss would be too large by the number of
    batches.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
