"""The trainer of a task on a model without values: nothing is probed or checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from lorakit.recipes.training_section import OPTIMIZER_NAME
from lorakit.training.losses.find_output_loss import read_output_loss
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.objectives.shared_prompts import takes_masks
from lorakit.training.tasks.base import Task
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.numerical_checks import LearningWatch

_SMALLEST_PAGED = 100_000
"""Smallest number of elements of a parameter whose state bitsandbytes pages."""


class PlannedTrainerMixin(AdapterTrainerMixin):
    """Replaces `AdapterTrainerMixin` before a trainer class, to run a step on fake tensors."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.watch = _NoChecks()

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Leave the model on its device."""

    def _find_loss(self, model: Any) -> OutputLoss | None:
        """Return the loss that the configuration implies; logits cannot be compared."""
        return read_output_loss(model)

    def _find_collator(self, model: Any) -> Any:
        """Return the preferred collator of packing; isolation cannot be tested."""
        trainer: Any = self
        return trainer.pack_collators()[0]

    def _shares_prompts(self, model: Any) -> bool:
        """Return what the configuration implies; logits cannot be compared."""
        return takes_masks(model)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: Any = None) -> tuple[Any, Any]:
        """Return an optimizer with the state of the requested one."""
        if args.optim == OPTIMIZER_NAME:  # its state is in a file
            return torch.optim.SGD, {"lr": args.learning_rate}
        found, options = AdapterTrainerMixin.get_optimizer_cls_and_kwargs(args, model)
        if getattr(found, "__module__", "").startswith("bitsandbytes."):
            found = _without_arithmetic(found)
        return found, options

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Leave the batch on its device."""
        return inputs


def planned_trainer_class(task: Task) -> type[Trainer]:
    """Return the class of a task's trainer that runs a step on fake tensors."""
    return type("PlannedTrainer", (PlannedTrainerMixin, task.base_trainer_class), {})


class _NoChecks(LearningWatch):
    """Checks neither losses nor gradients."""

    def check_loss(self, loss: Tensor, *args: Any) -> None:
        """Accept any loss."""

    def check_gradients(self, model: nn.Module, *args: Any) -> None:
        """Accept any gradients."""

    def check_norm(self, norm: Any, *args: Any) -> None:
        """Accept any norm."""


def _without_arithmetic(optimizer_class: Any) -> Any:
    """Return an optimizer of bitsandbytes with its state but without its kernels."""

    class Planned(optimizer_class):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.pages, self.is_paged = self.is_paged, False  # otherwise it synchronizes the GPU

        def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            is_small = p.numel() < _SMALLEST_PAGED
            # Paged state is in CPU memory and is moved on demand.
            device = p.device if is_small or not self.pages else torch.device("meta")
            return torch.zeros_like(p, dtype=dtype, device=device)

        def update_step(self, *args: Any) -> None:
            """Write to the state and the parameter in place."""

    return Planned
