"""Weights that accelerate keeps on the CPU or on disk and loads for each forward pass.

Between two passes such a parameter is on the meta device. The hook that loads it is the module's
`_hf_hook`: one hook, or several in a row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lorakit.layers.replaced import base_parts


def is_offloaded(module: nn.Module) -> bool:
    """Return whether accelerate loads a weight of this module or of its children on demand."""
    return any(_offloading_hooks(part) for part in base_parts(_holder(module)))


def execution_device(module: nn.Module) -> torch.device:
    """Return where a layer computes: its weight's device, or that of the hook that loads it."""
    for hook in _offloading_hooks(_holder(module)):
        if hook.execution_device is not None:
            return torch.device(hook.execution_device)
    weight = getattr(module, "weight", None)
    return (next(module.parameters()) if weight is None else weight).device


@contextmanager
def weights_in_place(module: nn.Module) -> Iterator[None]:
    """Load the offloaded weights of a module and of its children for a `with` block."""
    loaded: list[tuple[Any, nn.Module]] = []
    try:
        for part in base_parts(_holder(module)):
            for hook in _offloading_hooks(part):
                loaded.append((hook, part))
                hook.pre_forward(part)
        yield
    finally:
        for hook, part in loaded:
            hook.post_forward(part, None)


def _holder(module: nn.Module) -> nn.Module:
    """Return the module that holds the weights: for an adapted parameter its owner."""
    return getattr(module, "weight_owner", module)


def _offloading_hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    return [one for one in hooks if getattr(one, "offload", False)]
