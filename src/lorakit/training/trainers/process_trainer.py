"""What a trainer does in several processes that it would not do in one.

Rows are dealt out by accelerate: of N processes with batches of B rows, process p takes rows
(kN + p)B to (kN + p + 1)B - 1 of an epoch's order as its batch k. Where they do not come out even
it repeats rows from the epoch's beginning. Those are taken out of the loss here, so that a step
and an evaluation are about the same rows as in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import BatchSamplerShard
from transformers import Trainer, set_seed
from transformers.trainer_utils import EvalLoopOutput

from lorakit.adapters.sharded import whole
from lorakit.config import NOT_COUNTED
from lorakit.distributed import sharding
from lorakit.distributed.gradient_average import (
    average_gradients,
    broadcast_parameters,
    preparing_without_ddp,
)
from lorakit.distributed.processes import all_gather_object, process_count, process_rank

if TYPE_CHECKING:
    from torch import Tensor, nn

    _Base = Trainer
else:
    _Base = object

_SEED_STEP = 0x9E3779B1
"""Between the seeds of two processes; odd, so that no two of 2^32 coincide."""


class ProcessTrainerMixin(_Base):
    """Goes before a trainer class; makes training in several processes that in one.

    - Repeated rows do not count.
    - An epoch's order is drawn from what all processes share, everything else (dropout) from
      what each has for itself.
    - Gradients are averaged once in a step; frozen weights, which each process has read from the
      same files, are not sent around.
    """

    _own_random_state: Tensor | None = None
    """While an epoch's order is drawn: what to go on with afterwards."""
    _epoch: int = 0
    _train_sampler: Any = None
    _batches_taken: int = 0
    _eval_sampler: Any = None
    _batches_predicted: int = 0
    _eval_examples: int = 0

    # ---- rows that are repeated ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Take the batches of a step, with repeated rows taken out of the loss."""
        batches, counted = super().get_batch_samples(epoch_iterator, num_batches, device)
        if process_count() == 1:
            return batches, counted
        self._go_on_for_itself()
        rows = len(self.train_dataset)  # type: ignore[arg-type]
        first, self._batches_taken = self._batches_taken, self._batches_taken + len(batches)
        if examples_before(self._train_sampler, self._batches_taken) <= rows:
            return batches, counted
        batches = [
            mask_repeated_labels(batch, self._train_sampler, number, rows)
            for number, batch in enumerate(batches, first)
        ]
        return batches, self._get_num_items_in_batch(batches, device)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate on each row once."""
        self._eval_sampler, self._batches_predicted = dataloader.batch_sampler, 0
        self._eval_examples = len(dataloader.dataset)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kw: Any
    ) -> Any:
        """Predict a batch; its repeated rows do not count."""
        if process_count() > 1:
            number, self._batches_predicted = self._batches_predicted, self._batches_predicted + 1
            inputs = mask_repeated_labels(inputs, self._eval_sampler, number, self._eval_examples)
        return super().prediction_step(model, inputs, *args, **kw)

    # ---- random numbers ----

    def _run_epoch(self, **arguments: Any) -> None:
        if process_count() > 1:
            self._epoch = arguments["epoch"]
            self._train_sampler = arguments["train_dataloader"].batch_sampler
            resumes = arguments["resume_from_checkpoint"] is not None
            is_first = self._epoch == arguments["epochs_trained"]
            self._batches_taken = arguments["steps_trained_in_current_epoch"] if is_first else 0
            if is_first and not resumes:
                set_seed((self.args.seed + _SEED_STEP * process_rank()) % 2**32)
            self._draw_together()
        super()._run_epoch(**arguments)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self._own_random_state is not None:
            self._draw_together()

    def _draw_together(self) -> None:
        """Let all processes draw the same numbers, until `_go_on_for_itself`."""
        self._own_random_state = torch.get_rng_state()
        torch.default_generator.manual_seed((self.args.seed + _SEED_STEP * self._epoch) % 2**32)

    def _go_on_for_itself(self) -> None:
        if self._own_random_state is not None:
            torch.set_rng_state(self._own_random_state)
            self._own_random_state = None

    # ---- what is sent between processes ----

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare the model; gradients are averaged here, but by FSDP where it shards the model."""
        model: Any = self.model
        if self.is_fsdp_enabled:
            sharding.require_shardable(model)
            return super()._prepare_for_training(*args, **kwargs)
        broadcast_parameters(self._trained())
        with preparing_without_ddp(self.accelerator):
            return super()._prepare_for_training(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward; after the last of a step, average the gradients."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients and not self.is_fsdp_enabled:
            average_gradients(self._trained())
        return loss

    def _trained(self) -> list[nn.Parameter]:
        model: Any = self.model
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return _number(super()._clip_grad_norm(model))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return _number(super()._get_grad_norm(model, grad_norm=grad_norm))

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """End training; the mean training loss is that of all processes."""
        if process_count() > 1:
            losses = all_gather_object(self._tr_loss.item())
            self._tr_loss = torch.full_like(self._tr_loss, sum(losses) / len(losses))
        return super()._finalize_training(*args, **kwargs)

    # ---- sharded parameters ----

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator; on CPUs too it shards where that is asked for."""
        with sharding.restoring_launcher_environment():
            super().create_accelerator_and_postprocess()
        if sharding.is_sharding_requested({"fsdp": self.args.fsdp}) and not self.is_fsdp_enabled:
            sharding.shard_on_cpus(self.accelerator, self.args.fsdp_plugin_args or {})
            self.is_fsdp_enabled = True

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the optimizer's state whole, as it would be without sharding."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer: Any = self.optimizer
        state = sharding.gather_optimizer_state(optimizer.state_dict())
        if self.args.should_save:
            sharding.save_states(output_dir, state, self.lr_scheduler)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer's state, each process its part."""
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        sharding.load_states(checkpoint, self.optimizer, self.lr_scheduler)


def examples_before(sampler: Any, batch: int) -> int:
    """Return how many rows of an epoch's order all processes have taken before a batch.

    Args:
        sampler: The batch sampler that accelerate has made of a loader's.
        batch: The batch's number in one process.
    """
    if not isinstance(sampler, BatchSamplerShard) or sampler.batch_size is None:
        return 0
    return batch * sampler.batch_size * (1 if sampler.split_batches else sampler.num_processes)


def mask_repeated_labels(batch: Any, sampler: Any, number: int, total_rows: int) -> Any:
    """Return a batch in which the labels of repeated rows do not count.

    Args:
        batch: Of one process, with labels.
        sampler: The batch sampler it came from.
        number: Of the batch in this process and epoch, from 0.
        total_rows: Of the dataset.
    """
    if examples_before(sampler, number + 1) <= total_rows or "labels" not in batch:
        return batch
    size = sampler.batch_size // (sampler.num_processes if sampler.split_batches else 1)
    own_first = examples_before(sampler, number) + sampler.process_index * size
    real = max(total_rows - own_first, 0)
    if real >= size:
        return batch
    labels = batch["labels"].clone()
    if len(labels) == size:
        labels[real:] = NOT_COUNTED
    elif not real:  # rows laid end to end are one, and go together
        labels[:] = NOT_COUNTED
    return {**batch, "labels": labels}


def _number(norm: Any) -> Any:
    return whole(norm) if isinstance(norm, torch.Tensor) else norm
