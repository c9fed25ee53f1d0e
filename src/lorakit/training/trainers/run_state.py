"""What transformers' checkpoints lack for a run to resume to the same bits.

These are the running sums of the next logged loss, and the random state at the beginning of the
epoch, which determines its order.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from lorakit.distributed.processes import all_gather_object, barrier, is_main_process, process_rank
from lorakit.files.atomic import write_text
from lorakit.recipes import checkpoints

if TYPE_CHECKING:
    from transformers import TrainerState

_RUNNING_SUMS = "running_sums.json"
_EPOCH_RNG = "epoch_rng.pt"


class RunState(TrainerCallback):
    """Saves and restores this state of a trainer.

    Attributes:
        resumed_from: The checkpoint that the run was resumed from, or None.
        epoch_rng: torch's random state at the beginning of the epoch.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self.resumed_from: Path | None = None
        self.epoch_rng: Tensor | None = None

    def save(self, checkpoint: Path) -> None:
        """Write the state into a checkpoint; every process must call this."""
        sums = all_gather_object(self._sums())
        barrier()
        if is_main_process():
            write_text(checkpoint / _RUNNING_SUMS, json.dumps(sums))
            torch.save(self.epoch_rng, checkpoint / _EPOCH_RNG)

    def load_epoch_rng(self) -> None:
        """Set torch's random state to that of the beginning of the interrupted epoch."""
        resumed_from: Any = self.resumed_from
        torch.set_rng_state(torch.load(resumed_from / _EPOCH_RNG, weights_only=True))

    def is_over(self, state: TrainerState) -> bool:
        """Whether a resumed run had completed its last step, or had stopped early."""
        if self.resumed_from is None:
            return False
        is_at_checkpoint = state.global_step == checkpoints.step_of(self.resumed_from)
        has_all_steps = state.global_step >= state.max_steps
        return is_at_checkpoint and (has_all_steps or _has_lost_patience(state))

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Restore the sums of a resumed run, after the Trainer has reset them."""
        if self.resumed_from is None:
            return
        text = (self.resumed_from / _RUNNING_SUMS).read_text(encoding="utf-8")
        sums = json.loads(text)[process_rank()]
        trainer = self._trainer
        trainer._tr_loss = torch.tensor(sums["loss_since_log"], device=trainer.args.device)
        trainer._total_loss_scalar = sums["total_loss"]
        trainer._globalstep_last_logged = sums["last_logged_step"]
        trainer._initial_global_step = 0  # the mean training loss is over all steps
        if "throughput" in sums:  # not in those of the first version
            trainer.meter.load(sums["throughput"])
        if sums.get("measured") is not None:  # likewise
            trainer.measured.load(sums["measured"])
        if sums["tokens"] is not None:  # only TRL's trainers count them
            trainer._total_train_tokens = sums["tokens"]
            trainer._metrics["train"] = defaultdict(list, sums["token_metrics"])

    def _sums(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            "loss_since_log": trainer._tr_loss.item(),
            "total_loss": trainer._total_loss_scalar,
            "last_logged_step": trainer._globalstep_last_logged,
            "tokens": getattr(trainer, "_total_train_tokens", None),
            "token_metrics": getattr(trainer, "_metrics", {}).get("train", {}),
            "throughput": trainer.meter.state(),
            "measured": trainer.measured.state(),
        }


def _has_lost_patience(state: TrainerState) -> bool:
    callbacks: Any = state.stateful_callbacks
    if "EarlyStoppingCallback" not in callbacks:
        return False
    stopping = callbacks["EarlyStoppingCallback"]
    patience = stopping["args"]["early_stopping_patience"]
    return stopping["attributes"]["early_stopping_patience_counter"] >= patience
