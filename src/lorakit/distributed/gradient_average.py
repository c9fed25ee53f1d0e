"""The gradients of one adapter, averaged over the processes that train it.

torch's DDP sends each gradient as soon as backward has made it, and so has to know which
parameters a batch reaches: experts that no token was routed to, or that are reached in one process
alone, make it wait for ever. An adapter is small, so that all its gradients go at once after the
last backward of a step, and what a batch does not reach counts as zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lorakit.distributed.processes import process_count


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients by their mean over all processes, in place.

    A parameter without a gradient in every process keeps none, so that an optimizer leaves it
    alone as in one process.

    Args:
        parameters: Those that are trained, the same in every process and in the same order.
    """
    count = process_count()
    if count == 1 or not parameters:
        return
    device = parameters[0].device
    reached = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    reached = reached.to(device)
    distributed.all_reduce(reached, distributed.ReduceOp.MAX)
    by_kind: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = defaultdict(list)
    for parameter, is_reached in zip(parameters, reached.tolist(), strict=True):
        if is_reached:
            by_kind[parameter.dtype, parameter.device].append(parameter)
    for alike in by_kind.values():
        flat = torch.cat([_gradient(parameter) for parameter in alike]).div_(count)
        distributed.all_reduce(flat)
        parts = flat.split([parameter.numel() for parameter in alike])
        for parameter, part in zip(alike, parts, strict=True):
            parameter.grad = part.view_as(parameter)


@torch.no_grad()
def same_values(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the main one's values of the trained parameters."""
    if process_count() > 1:
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)


@contextmanager
def unwrapped(accelerator: Any) -> Iterator[None]:
    """Inside the block, let accelerate prepare a model without putting DDP around it."""
    whole: Callable[..., Any] = accelerator.prepare_model
    accelerator.prepare_model = partial(whole, evaluation_mode=True)
    try:
        yield
    finally:
        del accelerator.prepare_model


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
    return parameter.grad.to(parameter.dtype).reshape(-1)
