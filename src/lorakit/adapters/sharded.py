"""Sharded parameters, of which each process keeps a shard (DTensors, as of `fully_shard`)."""

from typing import Any, cast

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is one process's shard of a larger tensor."""
    return hasattr(tensor, "full_tensor")


def is_fsdp_unit(module: nn.Module) -> bool:
    """Return whether `fully_shard` gathers a module's parameters by hooks around its forward."""
    return hasattr(module, "_get_fsdp_state")


def unsharded_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module has or had before `fully_shard` changed it."""
    return type(module).__mro__[2] if is_fsdp_unit(module) else type(module)


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; every process that has a shard of it must call this."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def copy_whole_(place: Tensor, values: Tensor) -> None:
    """Copy a whole tensor into a tensor that may be sharded.

    Args:
        place: The destination; each process fills its shard.
        values: The whole tensor, the same in every process.
    """
    place.copy_(shard_like(values.to(place.device), place) if is_sharded(place) else values)


def shard_like(values: Tensor, place: Any) -> Tensor:
    """Return this process's shard of a whole tensor, sharded like another one."""
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole tensor, so nothing is sent.
    return distribute_tensor(values, place.device_mesh, place.placements, src_data_rank=None)
