"""Stop a run at a step from which it resumes to the same bits, in all processes alike.

After an epoch's last step comes the end of the epoch, perhaps with an evaluation, which a run
resumed from a checkpoint before it would skip: it would lack the metrics, and have other random
numbers from there on. So a checkpoint that is due at that step is saved after the end of the epoch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorakit.distributed.processes import all_reduce_max
from lorakit.errors import StoppedError
from lorakit.training.stop_request import StopRequest


class StopAtCheckpoint(TrainerCallback):
    """Checks a stop request after every step, and makes the trainer save a checkpoint."""

    def __init__(self, request: StopRequest):
        self._request = request
        self.number = 0
        """The signal that requests a stop after the next checkpoint, or 0."""
        self._is_due = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Request a checkpoint; at the last step of the epoch, postpone one that is due."""
        ends_epoch = float(state.epoch or 0.0).is_integer()
        if ends_epoch or control.should_training_stop:
            self._is_due, control.should_save = control.should_save, False
        else:
            self._check_request(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Request a checkpoint at the end of an epoch."""
        control.should_save = control.should_save or self._is_due
        self._check_request(control)

    def _check_request(self, control: TrainerControl) -> None:
        (self.number,) = all_reduce_max([self._request.number])
        control.should_save = control.should_save or bool(self.number)

    def stop(self, checkpoint: Path, step: int) -> None:
        """End training.

        Raises:
            StoppedError: Always.
        """
        raise StoppedError(
            f"Training was stopped after step {step}. Its checkpoint is {checkpoint}; "
            "go on from there with --resume.",
            checkpoint,
            self.number,
        )
