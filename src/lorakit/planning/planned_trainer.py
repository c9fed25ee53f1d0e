"""The task's own trainer, on a model without numbers: nothing is tried out and nothing checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from lorakit.recipes.training_section import OPTIMIZER_NAME
from lorakit.training.losses.output_loss import OutputLoss, assumed_output_loss
from lorakit.training.tasks.base import Task
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.numerical_checks import LearningWatch

_SMALLEST_PAGED = 100_000
"""Numbers of a parameter from which on bitsandbytes pages its state."""


class PlannedTrainerMixin(AdapterTrainerMixin):
    """Mixin for a trainer class, instead of `AdapterTrainerMixin`, that runs a step on fakes."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.watch = _Unwatched()

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Leave the model where it was made."""

    def _find_loss(self, model: Any) -> OutputLoss | None:
        """Take the model for what its configuration says; its logits cannot be compared."""
        return assumed_output_loss(model)

    def _find_collator(self, model: Any) -> Any:
        """Take the preferred way of packing; whether texts stay apart cannot be seen."""
        trainer: Any = self
        return trainer.pack_collators()[0]

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: Any = None) -> tuple[Any, Any]:
        """Return an optimizer that makes the state of the one asked for."""
        if args.optim == OPTIMIZER_NAME:  # its state is a file's
            return torch.optim.SGD, {"lr": args.learning_rate}
        found, options = AdapterTrainerMixin.get_optimizer_cls_and_kwargs(args, model)
        if getattr(found, "__module__", "").startswith("bitsandbytes."):
            found = _without_arithmetic(found)
        return found, options

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Leave the batch where it was made."""
        return inputs


def planned_trainer_class(task: Task) -> type[Trainer]:
    """Return the class of a task's trainer that runs a step on fake tensors."""
    return type("PlannedTrainer", (PlannedTrainerMixin, task.base_trainer_class), {})


class _Unwatched(LearningWatch):
    """Looks at no loss and no gradient."""

    def check_loss(self, loss: Tensor, *args: Any) -> None:
        """Take any loss."""

    def check_gradients(self, model: nn.Module, *args: Any) -> None:
        """Take any gradients."""

    def check_norm(self, norm: Any, *args: Any) -> None:
        """Take any norm."""


def _without_arithmetic(optimizer_class: Any) -> Any:
    """Return bitsandbytes' optimizer with its state and without its kernels, which need memory."""

    class Planned(optimizer_class):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.pages, self.is_paged = self.is_paged, False  # it would ask a GPU to wait

        def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            is_small = p.numel() < _SMALLEST_PAGED
            # What is paged lies in the CPU's memory and comes as it is needed.
            device = p.device if is_small or not self.pages else torch.device("meta")
            return torch.zeros_like(p, dtype=dtype, device=device)

        def update_step(self, *args: Any) -> None:
            """Write to the state and to the parameter, in place."""

    return Planned
