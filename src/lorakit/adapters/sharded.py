"""Parameters of which each process keeps a part (DTensors, as `fully_shard` makes them)."""

from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one process's part of a larger one."""
    return hasattr(tensor, "full_tensor")


def is_unit(module: nn.Module) -> bool:
    """Whether `fully_shard` gathers a module's parameters by hooks around its forward."""
    return hasattr(module, "_get_fsdp_state")


def unit_class(module: nn.Module) -> type[nn.Module]:
    """Return the class a module had before `fully_shard` changed it, if it did."""
    return type(module).__mro__[2] if is_unit(module) else type(module)


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; every process that has a part of it has to call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def copy_whole_(place: Tensor, values: Tensor) -> None:
    """Copy a whole tensor into one that may be a part.

    Args:
        place: Where to; each process fills its part.
        values: The whole, the same in every process.
    """
    place.copy_(shard_like(values.to(place.device), place) if is_sharded(place) else values)


def shard_like(values: Tensor, place: Any) -> Tensor:
    """Return this process's part of a whole tensor, split as another one is."""
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole, so nothing is sent.
    return distribute_tensor(values, place.device_mesh, place.placements, src_data_rank=None)
