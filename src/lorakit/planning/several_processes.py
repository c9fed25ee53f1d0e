"""The memory of each of several processes, with whole models and with FSDP2.

Activations, logits and temporaries are those of the step that was counted in one process. The rest
is calculated from the sizes of the parameters:

- With whole models, gradients are averaged once per step, after the last backward: they are copied
  into one message for each dtype, which then replaces them. Saved activations are gone by then, so
  the second copy raises the peak only where there are few of them.
- FSDP2 keeps 1/N of every parameter, gradient and state, and gathers whole ones: parameters
  outside of any block for the whole step, and those of the running and the next block temporarily;
  in backward, the gradients of these two blocks are whole too. Packed weights in 4 or 8 bits are
  not sharded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from lorakit.layers.bitsandbytes_storage import quantized_weight
from lorakit.planning.live_storages import Purpose
from lorakit.planning.step_memory import StepMemory

_BLOCKS_GATHERED = 2


def memory_per_process(
    step: StepMemory, model: nn.Module, processes: int, shards: bool
) -> StepMemory:
    """Return the memory of a step in each of several processes.

    Args:
        step: Memory counted in one process.
        model: Model it was counted on.
        processes: Number of processes.
        shards: Whether the model is sharded (FSDP2); otherwise each process has all of it.
    """
    if processes == 1:
        return step
    return _with_fsdp(step, model, processes) if shards else _with_average(step)


def _with_average(step: StepMemory) -> StepMemory:
    """Return the step with what is alive while gradients are averaged, if that is its peak."""
    alive: dict[str, int] = {
        Purpose.BASE: step.base_weights_bytes,
        Purpose.ADAPTER: step.adapter_bytes,
        Purpose.GRADIENTS: step.gradient_bytes,
        Purpose.OPTIMIZER: step.optimizer_bytes,
        Purpose.BATCH: step.at_peak.get(Purpose.BATCH, 0),
        Purpose.COMMUNICATION: step.gradient_bytes,
    }
    total = sum(alive.values())
    if total <= step.peak_bytes:
        return step
    return replace(
        step,
        logits_bytes=0,
        temporary_bytes=0,
        peak_bytes=total,
        peak_place="averaging of gradients",
        at_peak={str(purpose): size for purpose, size in alive.items()},
    )


def _with_fsdp(step: StepMemory, model: nn.Module, processes: int) -> StepMemory:
    packed = {
        id(module.weight) for module in model.modules() if quantized_weight(module) is not None
    }
    shared = [p for p in model.parameters() if id(p) not in packed]
    base = _ShardedSizes((p for p in shared if not p.requires_grad), processes)
    trained = _ShardedSizes((p for p in shared if p.requires_grad), processes)
    saved: dict[str, int] = {
        Purpose.BASE: base.saved_bytes,
        Purpose.ADAPTER: trained.saved_bytes,
        Purpose.GRADIENTS: round(step.gradient_bytes * trained.saved_share),
        Purpose.OPTIMIZER: round(step.optimizer_bytes * trained.saved_share),
    }
    at_peak = {
        purpose: max(size - saved.get(purpose, 0), 0) for purpose, size in step.at_peak.items()
    }
    at_peak[Purpose.COMMUNICATION] = _gathered_bytes(model, shared)
    return replace(
        step,
        base_weights_bytes=step.base_weights_bytes - saved[Purpose.BASE],
        adapter_bytes=step.adapter_bytes - saved[Purpose.ADAPTER],
        gradient_bytes=step.gradient_bytes - saved[Purpose.GRADIENTS],
        optimizer_bytes=step.optimizer_bytes - saved[Purpose.OPTIMIZER],
        peak_bytes=sum(at_peak.values()),
        at_peak=at_peak,
    )


class _ShardedSizes:
    """Sizes of parameters sharded along their first dimension, with padding."""

    def __init__(self, parameters: Iterable[nn.Parameter], processes: int):
        whole = shard = 0
        for parameter in parameters:
            whole += parameter.nbytes
            rows = parameter.shape[0] if parameter.ndim else 1
            shard += -(-rows // processes) * (parameter.nbytes // max(rows, 1))
        self.saved_bytes = whole - shard
        self.saved_share = self.saved_bytes / whole if whole else 0.0


def _gathered_bytes(model: nn.Module, shared: list[nn.Parameter]) -> int:
    """Return the bytes of whole parameters and their gradients that exist at the same time."""
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    are_shared = {id(p) for p in shared}
    in_blocks: set[int] = set()
    largest = 0
    for module in model.modules():
        if any(kind.__name__ in blocks for kind in type(module).__mro__):
            block = [p for p in module.parameters() if id(p) in are_shared]
            in_blocks |= {id(p) for p in block}
            largest = max(largest, sum(map(_with_gradient, block)))
    outside = [p for p in shared if id(p) not in in_blocks]
    return sum(p.nbytes for p in outside) + _BLOCKS_GATHERED * largest


def _with_gradient(parameter: torch.Tensor) -> int:
    return parameter.nbytes * (2 if parameter.requires_grad else 1)
