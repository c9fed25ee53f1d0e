"""Average the gradients of an adapter over all processes.

torch's DDP sends each gradient as soon as backward has computed it, so it must know which
parameters a batch reaches: an expert that receives no token, or receives tokens in one process
only, makes it hang. An adapter is small, so here all gradients are reduced together after the last
backward pass of a step, and a parameter that a batch does not reach counts as zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lorakit.distributed.processes import all_reduce_max, process_count


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients by their mean over all processes, in place.

    A parameter that has no gradient in any process keeps none, so the optimizer skips it as it
    does in a single process.

    Args:
        parameters: The trained parameters, the same in every process and in the same order.
    """
    count = process_count()
    if count == 1 or not parameters:
        return
    # Between the CPUs, because reading the answer from a device would make it wait.
    reached = all_reduce_max([int(parameter.grad is not None) for parameter in parameters])
    by_kind: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = defaultdict(list)
    for parameter, is_reached in zip(parameters, reached, strict=True):
        if is_reached:
            by_kind[parameter.dtype, parameter.device].append(parameter)
    for alike in by_kind.values():
        flat = torch.cat([_flat_gradient(parameter) for parameter in alike]).div_(count)
        distributed.all_reduce(flat)
        means = flat.split([parameter.numel() for parameter in alike])
        for parameter, mean in zip(alike, means, strict=True):
            parameter.grad = mean.view_as(parameter)


@torch.no_grad()
def broadcast_parameters(parameters: Sequence[nn.Parameter]) -> None:
    """Copy the main process's values of the parameters to every process."""
    if process_count() > 1:
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)


@contextmanager
def preparing_without_ddp(accelerator: Any) -> Iterator[None]:
    """Make accelerate prepare models without wrapping them in DDP inside the block."""
    whole: Callable[..., Any] = accelerator.prepare_model
    accelerator.prepare_model = partial(whole, evaluation_mode=True)
    try:
        yield
    finally:
        del accelerator.prepare_model


def _flat_gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
    return parameter.grad.to(parameter.dtype).reshape(-1)
