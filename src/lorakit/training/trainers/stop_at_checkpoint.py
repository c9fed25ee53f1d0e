"""Stopping a run where it can go on to the same bits, all processes after the same step.

An epoch's last step is followed by what belongs to the epoch's end, an evaluation perhaps; a
checkpoint before that would let a resumed run leave it out. Such a run stops after the epoch's end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorakit.distributed.processes import all_reduce_max
from lorakit.errors import StoppedError
from lorakit.training.stop_request import StopRequest


class StopAtCheckpoint(TrainerCallback):
    """Looks at a request after every step, and says when the trainer has to save and stop."""

    def __init__(self, request: StopRequest):
        self._request = request
        self.number = 0
        """The signal for which to stop after the checkpoint that comes next; 0: go on."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint, unless the epoch's end comes next."""
        ends_epoch = float(state.epoch or 0.0).is_integer()
        if not (ends_epoch or control.should_training_stop):
            self._look(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint at the end of an epoch."""
        self._look(control)

    def _look(self, control: TrainerControl) -> None:
        self.number = all_reduce_max(self._request.number)
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
