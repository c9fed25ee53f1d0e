"""Count the memory of one training step while it runs.

The same code runs a step on fake tensors (to plan) and on real ones (to compare).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lorakit.layers.bitsandbytes_storage import quantized_weight
from lorakit.ops.quantized import release_buffers, shared_buffers
from lorakit.planning.live_storages import LiveStorages, Purpose
from lorakit.planning.running_module import track_running_module
from lorakit.training.trainers.adapter_trainer import checkpoints_reentrantly

if TYPE_CHECKING:
    from transformers import Trainer

_MAX_MICRO_BATCHES = 2
"""Accumulated micro-batches that run; all after the first are alike."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step after the first, so with optimizer state."""

    base_weights_bytes: int
    """Frozen parameters, buffers, and the tensors of quantized weights."""
    adapter_bytes: int
    """All trained parameters."""
    gradient_bytes: int
    """Gradients of one step, at the end of backward."""
    optimizer_bytes: int
    saved_activation_bytes: int
    """Tensors saved for backward, including logits."""
    logits_bytes: int
    """Logits at the peak."""
    temporary_bytes: int
    """Temporary tensors of forward or backward at the peak."""
    peak_bytes: int
    peak_place: str
    """Module that runs at the peak, "optimizer" or "averaging of gradients"."""
    at_peak: Mapping[str, int]
    """Bytes at the peak, by `Purpose`."""


def longest_batch(
    trainer: Trainer, examples: Sequence[Mapping[str, Any]], train_examples: int | None
) -> dict[str, Any]:
    """Return a batch of the longest examples, made by the collator of a trainer.

    Args:
        trainer: The trainer.
        examples: Encoded examples, the longest first; repeated if there are too few.
        train_examples: Number of examples in the whole run, which limits the batch.
    """
    subject: Any = trainer
    size = subject.args.per_device_train_batch_size
    size = size if train_examples is None else min(size, train_examples)
    longest = [dict(example) for example in islice(cycle(examples), size)]
    return dict(subject.counting_collator()(longest))


def run_step(trainer: Trainer, batch: Mapping[str, Any]) -> StepMemory:
    """Run a training step of a trainer and count its memory.

    Args:
        trainer: Trainer of the model; its optimizer is created if it has none.
        batch: Batch on the device of the model.

    Returns: Memory on the device of the model.
    """
    subject: Any = trainer
    model: Any = subject.model
    trained = [p for p in model.parameters() if p.requires_grad]
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    storages = LiveStorages(next(model.parameters()).device.type, vocabulary)
    storages.adopt(trained, Purpose.ADAPTER)
    storages.adopt(_frozen(model), Purpose.BASE)
    storages.adopt(_tensors(batch), Purpose.BATCH)
    optimizer = subject.create_optimizer()
    with storages:
        _make_state(optimizer, trained)
    storages.adopt(_tensors([*optimizer.state.values()]), Purpose.OPTIMIZER)
    storages.forget_peak()
    release_buffers()  # a larger model may have left larger ones
    kept: Counter[Purpose] = Counter()
    with (
        _enabling_checkpointing(subject),
        _enabling_autocast(subject),
        track_running_module(model, lambda place: setattr(storages, "place", place)),
        _watching_backward(subject, storages, trained, kept),
        storages,
    ):
        _one_step(subject, batch)
    at_end = storages.living_bytes()
    optimizer.zero_grad(set_to_none=True)
    at_peak = storages.peak_by_purpose()
    weights = storages.living_bytes()
    return StepMemory(
        base_weights_bytes=weights[Purpose.BASE],
        adapter_bytes=weights[Purpose.ADAPTER],
        gradient_bytes=at_end[Purpose.GRADIENTS],
        optimizer_bytes=weights[Purpose.OPTIMIZER],
        saved_activation_bytes=kept[Purpose.ACTIVATIONS] + kept[Purpose.LOGITS],
        logits_bytes=at_peak[Purpose.LOGITS],
        temporary_bytes=at_peak[Purpose.TEMPORARY],
        peak_bytes=storages.peak_bytes,
        peak_place=storages.peak_place,
        at_peak={str(purpose): size for purpose, size in at_peak.items()},
    )


def _one_step(trainer: Any, batch: Mapping[str, Any]) -> None:
    """Run one optimizer step as the loop of the Trainer does."""
    model, arguments = trainer.model, trainer.args
    count = min(arguments.gradient_accumulation_steps, _MAX_MICRO_BATCHES)
    trainer.current_gradient_accumulation_steps = count
    device = next(model.parameters()).device
    batches, items = trainer.get_batch_samples(iter([batch] * count), count, device)
    for number, inputs in enumerate(batches):
        trainer.accelerator.gradient_state._set_sync_gradients(number == count - 1)
        trainer.training_step(model, {**inputs}, items)
    if arguments.max_grad_norm > 0:
        trainer._clip_grad_norm(model)
    trainer.optimizer.step()


def _make_state(optimizer: Any, trained: list[nn.Parameter]) -> None:
    """Create the state of an optimizer as a first step does; parameters do not change."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def _watching_backward(
    trainer: Any, storages: LiveStorages, trained: list[nn.Parameter], kept: Counter[Purpose]
) -> Iterator[None]:
    """Count live storages between forward and backward, and gradients after backward."""
    backward = trainer.accelerator.backward

    def watch_backward(loss: Tensor, **options: Any) -> None:
        storages.assign(shared_buffers(trained[0]), Purpose.TEMPORARY)
        storages.assign_rest(Purpose.ACTIVATIONS)
        kept.clear()
        kept.update(storages.living_bytes())
        backward(loss, **options)
        gradients = [p.grad for p in trained if p.grad is not None]
        storages.assign(gradients, Purpose.GRADIENTS)
        storages.place = "optimizer"

    trainer.accelerator.backward = watch_backward
    try:
        yield
    finally:
        del trainer.accelerator.backward


@contextmanager
def _enabling_checkpointing(trainer: Any) -> Iterator[None]:
    """Enable activation checkpointing as the loop of the Trainer does, then disable it."""
    model, arguments = trainer.model, trainer.args
    if not arguments.activation_checkpointing:
        yield
        return
    options = dict(arguments.activation_checkpointing_kwargs or {})
    extra = {key: options.pop(key) for key in ("every_n_layers", "offload") if key in options}
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options or None, **extra)
    if not checkpoints_reentrantly(arguments):
        model.disable_input_require_grads()
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


@contextmanager
def _enabling_autocast(trainer: Any) -> Iterator[None]:
    """Run the model under autocast with float32 outputs, as accelerate does in training."""
    model, arguments = trainer.model, trainer.args
    if not (arguments.bf16 or arguments.fp16) or hasattr(model, "_original_forward"):
        yield
        return
    half = torch.bfloat16 if arguments.bf16 else torch.float16
    device_type = next(model.parameters()).device.type
    original = vars(model).get("forward")
    model.forward = convert_outputs_to_fp32(torch.autocast(device_type, half)(model.forward))
    try:
        yield
    finally:
        del model.forward
        if original is not None:
            model.forward = original


def _frozen(model: nn.Module) -> Iterator[Tensor]:
    """Yield frozen parameters, buffers, and the tensors of quantized weights."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            yield parameter
    yield from model.buffers()
    for module in model.modules():
        weight: Any = quantized_weight(module)
        yield from (part for part in (weight or ())[1:] if part is not None)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
