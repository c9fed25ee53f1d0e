"""Make training in several processes equal to training in one.

accelerate distributes the examples: with N processes and batches of B examples, process p takes
examples (kN + p)B to (kN + p + 1)B - 1 of an epoch's order as its batch k. If the number is not
divisible, it repeats examples from the beginning of the epoch. Their labels are masked here, so
that a step and an evaluation use the same examples as in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import BatchSamplerShard
from transformers import Trainer, set_seed
from transformers.trainer_utils import EvalLoopOutput

from lorakit.adapters.sharded import whole
from lorakit.distributed import sharding
from lorakit.distributed.gradient_average import (
    average_gradients,
    broadcast_parameters,
    preparing_without_ddp,
)
from lorakit.distributed.processes import all_gather_object, process_count, process_rank
from lorakit.training.losses.counted_labels import COUNTED
from lorakit.training.throughput import not_counted
from lorakit.training.trainers.batching import example_sampler

if TYPE_CHECKING:
    from torch import Tensor, nn

    _Base = Trainer
else:
    _Base = object

_SEED_STEP = 0x9E3779B1
"""Difference between the seeds of two processes; odd, so that 2^32 seeds are distinct."""


class ProcessTrainerMixin(_Base):
    """Mixin for a trainer class that gives the same training in several processes as in one.

    - Repeated examples do not count.
    - An epoch's order uses a random state that all processes share; everything else (dropout) uses
      the random state of each process.
    - Gradients are averaged once per step; frozen weights, which each process reads from the same
      files, are not broadcast.
    """

    _own_random_state: Tensor | None = None
    """The random state of this process while the shared one is active."""
    _epoch: int = 0
    _train_sampler: Any = None
    _train_examples: int = 0
    """Number of examples of an epoch."""
    _batches_taken: int = 0
    _eval_sampler: Any = None
    _batches_predicted: int = 0
    _eval_examples: int = 0

    # ---- repeated examples ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Take the batches of a step, and mask the labels of repeated examples."""
        batches, counted = super().get_batch_samples(epoch_iterator, num_batches, device)
        if process_count() == 1:
            return batches, counted
        self._restore_own_random_state()
        total = self._train_examples
        first, self._batches_taken = self._batches_taken, self._batches_taken + len(batches)
        if examples_before(self._train_sampler, self._batches_taken) <= total:
            return batches, counted
        batches = [
            mask_repeated_labels(batch, self._train_sampler, number, total)
            for number, batch in enumerate(batches, first)
        ]
        return batches, self._get_num_items_in_batch(batches, device)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate on each example once."""
        self._eval_sampler, self._batches_predicted = dataloader.batch_sampler, 0
        self._eval_examples = len(dataloader.dataset)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kw: Any
    ) -> Any:
        """Predict a batch, whose repeated examples do not count."""
        if process_count() > 1:
            number, self._batches_predicted = self._batches_predicted, self._batches_predicted + 1
            inputs = mask_repeated_labels(inputs, self._eval_sampler, number, self._eval_examples)
        return super().prediction_step(model, inputs, *args, **kw)

    # ---- random state ----

    def _run_epoch(self, **arguments: Any) -> None:
        if process_count() > 1:
            self._epoch = arguments["epoch"]
            self._train_sampler = arguments["train_dataloader"].batch_sampler
            self._train_examples = len(example_sampler(arguments["train_dataloader"]))
            resumes = arguments["resume_from_checkpoint"] is not None
            is_first = self._epoch == arguments["epochs_trained"]
            self._batches_taken = arguments["steps_trained_in_current_epoch"] if is_first else 0
            if is_first and not resumes:
                set_seed((self.args.seed + _SEED_STEP * process_rank()) % 2**32)
            self._set_shared_random_state()
        super()._run_epoch(**arguments)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self._own_random_state is not None:
            self._set_shared_random_state()

    def _set_shared_random_state(self) -> None:
        """Use the same random state in all processes, until `_restore_own_random_state`."""
        self._own_random_state = torch.get_rng_state()
        torch.default_generator.manual_seed((self.args.seed + _SEED_STEP * self._epoch) % 2**32)

    def _restore_own_random_state(self) -> None:
        if self._own_random_state is not None:
            torch.set_rng_state(self._own_random_state)
            self._own_random_state = None

    # ---- communication ----

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare the model; without FSDP, this class averages the gradients instead of DDP."""
        model: Any = self.model
        if self.is_fsdp_enabled:
            sharding.require_shardable(model)
            with sharding.sharding_embeddings_once(model):
                return super()._prepare_for_training(*args, **kwargs)
        broadcast_parameters(self._trained_parameters())
        with preparing_without_ddp(self.accelerator):
            return super()._prepare_for_training(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward; after the last backward of a step, average the gradients."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients and not self.is_fsdp_enabled:
            average_gradients(self._trained_parameters())
        return loss

    def _trained_parameters(self) -> list[nn.Parameter]:
        model: Any = self.model
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return _full_norm(super()._clip_grad_norm(model))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return _full_norm(super()._get_grad_norm(model, grad_norm=grad_norm))

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """End training; average the training loss over all processes."""
        if process_count() > 1:
            losses = all_gather_object(self._tr_loss.item())
            self._tr_loss = torch.full_like(self._tr_loss, sum(losses) / len(losses))
        return super()._finalize_training(*args, **kwargs)

    # ---- sharded parameters ----

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; shard on CPUs too if requested."""
        with sharding.restoring_launcher_environment():
            super().create_accelerator_and_postprocess()
        if sharding.is_sharding_requested({"fsdp": self.args.fsdp}) and not self.is_fsdp_enabled:
            sharding.shard_on_cpus(self.accelerator, self.args.fsdp_plugin_args or {})
            self.is_fsdp_enabled = True

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the full optimizer state, as without sharding."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer: Any = self.optimizer
        state = sharding.gather_optimizer_state(optimizer.state_dict())
        if self.args.should_save:
            sharding.save_states(output_dir, state, self.lr_scheduler)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer's state; each process keeps its shard."""
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        sharding.load_states(checkpoint, self.optimizer, self.lr_scheduler)


def examples_before(sampler: Any, batch: int) -> int:
    """Return the number of examples that all processes together take before a batch.

    Args:
        sampler: The batch sampler that accelerate made from the loader's.
        batch: Index of the batch in one process.
    """
    if not isinstance(sampler, BatchSamplerShard) or sampler.batch_size is None:
        return 0
    return batch * sampler.batch_size * sampler.num_processes


def mask_repeated_labels(batch: Any, sampler: Any, number: int, total: int) -> Any:
    """Return a batch in which the labels of repeated examples do not count.

    Args:
        batch: A batch of this process, with labels.
        sampler: The batch sampler it came from.
        number: Index of the batch in this process and epoch, from 0.
        total: Number of examples of the dataset.
    """
    if examples_before(sampler, number + 1) <= total or "labels" not in batch:
        return batch
    size = sampler.batch_size
    first = examples_before(sampler, number) + sampler.process_index * size
    real = max(total - first, 0)
    if real >= size:
        return batch
    rest = {key: value for key, value in batch.items() if key != COUNTED}  # counted once more
    labels = batch["labels"].clone()
    if len(labels) == size:
        labels[real:] = not_counted(labels)
        return {**rest, "labels": labels}
    tokens = sum(batch[COUNTED].example_tokens[:real])  # the examples are in one batch row
    positions = batch["position_ids"].clone()
    labels[:, tokens:], positions[:, tokens:] = not_counted(labels), 0  # like padding
    return {**rest, "labels": labels, "position_ids": positions}


def _full_norm(norm: Any) -> Any:
    return whole(norm) if isinstance(norm, torch.Tensor) else norm
