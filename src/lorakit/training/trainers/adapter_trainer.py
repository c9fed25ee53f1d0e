"""The common base of all trainers: save only adapters, and resume to the same bits.

With `process_trainer`, this file overrides the private methods of transformers' Trainer.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import ProgressCallback, Trainer
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import rotate_checkpoints

from lorakit.adapters import Adapter, load_adapter_state_dict
from lorakit.adapters.peft_files.files import read_adapter_files
from lorakit.distributed.processes import (
    barrier,
    is_main_process,
    process_count,
)
from lorakit.distributed.sharding import reshard
from lorakit.errors import DiskError, TrainingError
from lorakit.files.disks import reporting_disk_errors
from lorakit.recipes import checkpoints
from lorakit.recipes.training_section import LORA_PLUS_KEY, OPTIMIZER_NAME
from lorakit.training.trainers.batching import BatchingMixin, temporarily
from lorakit.training.trainers.data_initialization import adopt_ranks, initialize_adapter_from_data
from lorakit.training.trainers.kept_predictions import KeptPredictionsMixin
from lorakit.training.trainers.lora_plus import split_groups
from lorakit.training.trainers.memory_mapped_adamw import MemoryMappedAdamW
from lorakit.training.trainers.numerical_checks import (
    LearningWatch,
    require_finite_loss,
    require_sound,
)
from lorakit.training.trainers.process_trainer import ProcessTrainerMixin
from lorakit.training.trainers.run_state import RunState
from lorakit.training.trainers.stop_at_checkpoint import StopAtCheckpoint

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.amp.grad_scaler import GradScaler
    from transformers import TrainingArguments

_KEYS_NOT_OF_TORCH = {"every_n_layers", "offload", "selective"}
"""Options of activation checkpointing that transformers and TRL handle, not torch."""


class AdapterTrainerMixin(KeptPredictionsMixin, BatchingMixin, ProcessTrainerMixin):
    """Mixin for a trainer class that saves, resumes and checks adapters.

    A checkpoint has the adapter, optimizer, scheduler, random state and trainer state, and the
    `RunState`, which the Trainer does not save. It is complete once its manifest is written.
    """

    adapter_name = "default"

    def __init__(self, *args: Any, **kwargs: Any):
        self.watch = LearningWatch(self.why_constant)
        self._run_state = RunState(self)
        self._is_initialized = False
        self._has_saved = False
        with _mark_as_adapted(kwargs["model"]):
            super().__init__(*args, **kwargs)
        callbacks = self.callback_handler.callbacks
        self._stopping = next((c for c in callbacks if isinstance(c, StopAtCheckpoint)), None)
        self.add_callback(self._run_state)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    # ---- saving ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save only the adapter; with sharded parameters all processes gather it."""
        adapter = copy_trained_adapter(self.accelerator.unwrap_model(self.model), self.adapter_name)
        require_sound(adapter, self.state.global_step, self.optimizer)
        if self.args.should_save:
            adapter.save(output_dir or str(self.args.output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint and its manifest, and only then delete older checkpoints.

        Raises:
            DiskError: It could not be written; the incomplete checkpoint is removed.
        """
        checkpoint = self._checkpoint_path(self.state.global_step)
        self._has_saved = True
        try:
            with reporting_disk_errors(checkpoint, "a checkpoint", self._checkpoint_bytes):
                self._write_checkpoint(checkpoint, model, trial)
        except DiskError:
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise

    def _write_checkpoint(self, checkpoint: Path, model: nn.Module, trial: Any) -> None:
        if process_count() > 1:  # each process writes its random state there
            if is_main_process():
                checkpoint.mkdir(exist_ok=True)
            barrier()
        with temporarily(self.args, save_total_limit=None):
            super()._save_checkpoint(model, trial)
        self._run_state.save(checkpoint)
        if not is_main_process():
            return
        checkpoints.seal(checkpoint)
        rotate_checkpoints(
            output_dir=str(self.args.output_dir),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
        )

    def _checkpoint_bytes(self) -> int:
        """Return the approximate size of a checkpoint: the adapter and the optimizer's state."""
        optimizer: Any = self.optimizer
        states = (t for state in optimizer.state.values() for t in state.values())
        trained = (p for p in self.model.parameters() if p.requires_grad)  # type: ignore[union-attr]  # set by Trainer
        return sum(
            t.numel() * t.element_size() for t in (*trained, *filter(torch.is_tensor, states))
        )

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kw: Any
    ) -> None:
        """Log, evaluate and save if due; then stop if requested.

        Raises:
            StoppedError: A stop was requested; the checkpoint of this step exists.
        """
        self._has_saved = False
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self.watch.read()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kw)
        if self._stopping is None or not self._stopping.number:
            return
        if not self._has_saved:  # with save_strategy=best, if it is not the best
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self._stopping.stop(self._checkpoint_path(self.state.global_step), self.state.global_step)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """End training, after the last losses are checked."""
        self.watch.read()
        return super()._finalize_training(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate.

        Raises:
            TrainingError: The loss is not a number.
        """
        metrics = super().evaluate(*args, **kwargs)
        require_finite_loss(metrics, self.state.global_step)
        return metrics

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the scheduler without a warmup of one step, whose learning rate would be zero."""
        is_short = self.args.get_warmup_steps(num_training_steps) <= 1
        with temporarily(self.args, warmup_steps=0 if is_short else self.args.warmup_steps):
            return super().create_scheduler(num_training_steps, optimizer)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Disable TRL's README in the run directory."""

    def _send_telemetry(self) -> None:
        """Disable TRL's telemetry."""

    def _checkpoint_path(self, step: int) -> Path:
        return Path(str(self.args.output_dir)) / f"checkpoint-{step}"

    # ---- loading ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Copy a checkpoint's adapter into the model's adapter, in place."""
        self._run_state.resumed_from = Path(resume_from_checkpoint)
        self.args.eval_on_start = False  # only for a new run
        self._load_adapter_from(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Copy the best checkpoint's adapter into the model's adapter, in place."""
        self._load_adapter_from(str(self.state.best_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the states, with the learning rate of this run's schedule at that step.

        The saved rate is that of the run as it was planned then: zero at the end of its last epoch.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler, optimizer = self.lr_scheduler, cast(Any, self.optimizer)
        if checkpoint is None or not isinstance(scheduler, LambdaLR):
            return
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        scheduler._last_lr = [r * f for r, f in zip(scheduler.base_lrs, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate

    def _load_adapter_from(self, checkpoint: str) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        reshard(model)  # else the tensors would be copied into gathered parameters, and lost
        saved = read_adapter_files(checkpoint)
        adopt_ranks(model, saved.values, saved.tensors, self.adapter_name)
        load_adapter_state_dict(model, saved.tensors, self.adapter_name)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Find the best checkpoint by its step, because the run directory may have moved."""
        result = super()._init_training_state(*args, **kwargs)
        if self.state.best_global_step:
            best = self._checkpoint_path(self.state.best_global_step)
            if not checkpoints.problems(best):
                self.state.best_model_checkpoint = str(best)
        return result

    # ---- optimizer and model ----

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: Any = None) -> tuple[Any, Any]:
        """Return the optimizer's class and options, including lorakit's memory-mapped AdamW."""
        if args.optim != OPTIMIZER_NAME:
            return Trainer.get_optimizer_cls_and_kwargs(args, model)
        settings = {
            "lr": args.learning_rate,
            "betas": (args.adam_beta1, args.adam_beta2),
            "eps": args.adam_epsilon,
            "directory": args.output_dir,
        }
        return MemoryMappedAdamW, settings

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimizer once; with LoRA+ every lora_B has its own learning rate."""
        is_new = self.optimizer is None
        optimizer: Any = super().create_optimizer(*args, **kwargs)
        ratio = getattr(self.args, LORA_PLUS_KEY, None)
        if is_new and ratio is not None:
            model: Any = self.model
            optimizer.param_groups[:] = split_groups(optimizer.param_groups, model, ratio)
        return optimizer

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train; initialize an adapter from data before the optimizer is created.

        Non-reentrant checkpointing needs no inputs that require gradients. transformers makes the
        output of the embeddings require them for any checkpointing. Backward would then run down
        through layers without adapters, and a compiled graph would break there.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        checkpoint = kwargs.get("resume_from_checkpoint")
        if checkpoint is None and not self._is_initialized:
            initialize_adapter_from_data(self, model, self.adapter_name)
        if checkpoint is not None:
            # A sharded model is filled later, and must have the final shapes by then.
            saved = read_adapter_files(checkpoint)
            adopt_ranks(model, saved.values, saved.tensors, self.adapter_name)
        self._is_initialized = True
        if self.args.activation_checkpointing and not checkpoints_reentrantly(self.args):
            model.disable_input_require_grads()
        return super()._inner_training_loop(*args, **kwargs)

    # ---- resuming ----

    def _run_epoch(self, **arguments: Any) -> None:
        """Run one epoch; a resumed epoch keeps its original order."""
        state = self._run_state
        if state.is_over(self.state):
            self.control.should_training_stop = True
            return
        is_first = arguments["epoch"] == arguments["epochs_trained"]
        if state.resumed_from is not None and is_first and process_count() == 1:
            if arguments["steps_trained_in_current_epoch"] > 0:
                state.load_epoch_rng()
            else:
                self._load_rng_state(str(state.resumed_from))
        state.epoch_rng = torch.get_rng_state()
        super()._run_epoch(**arguments)

    # ---- numerical checks ----

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward, and check the loss and the first gradients."""
        step = self.state.global_step
        try:
            loss = super().training_step(*args, **kwargs)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise TrainingError(
                f"There are no gradients on step {step + 1}: the loss does not depend on any "
                "trained parameter, expected it to depend on the adapter. "
                "Choose other lora.target_modules."
            ) from error
        self.watch.check_loss(loss, step, self._scaler)
        if self.accelerator.sync_gradients:
            model: Any = self.model
            self.watch.check_gradients(model, step, self._scaler)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient norm, a number."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.watch.check_norm(norm, self.state.global_step, self._scaler)
        return norm

    @property
    def _scaler(self) -> GradScaler | None:
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler if scaler is not None and scaler.is_enabled() else None


def checkpoints_reentrantly(arguments: TrainingArguments) -> bool:
    """Whether activation checkpointing, if enabled, uses torch's reentrant implementation."""
    given: Any = arguments.activation_checkpointing_kwargs or {}
    # Given only other keys, torch uses the reentrant implementation.
    return given.get("use_reentrant", bool(given.keys() - _KEYS_NOT_OF_TORCH))


def copy_trained_adapter(model: nn.Module, name: str = "default") -> Adapter:
    """Copy the adapter of a model in training; with sharding, every process must call this."""
    reshard(model)
    return Adapter.from_model(model, name)


@contextmanager
def _mark_as_adapted(model: Any) -> Iterator[None]:
    """Mark a quantized model as adapted inside the block, else transformers refuses to train it.

    transformers' PEFT integration sets the same attribute. Other code takes it as a sign of PEFT
    layers, so it is removed afterwards.
    """
    is_quantized = getattr(model, "is_quantized", False)
    if is_quantized:
        model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        if is_quantized:
            del model._hf_peft_config_loaded
