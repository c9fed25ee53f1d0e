"""Checks of kernels and blocks before factors are exchanged."""

from typing import cast

from torch import nn

from lorakit.adapters.adapter import Adapter
from lorakit.errors import AdapterMismatchError
from lorakit.injection.state import adapted_layers
from lorakit.layers import AdaptedLayer, LowRankUpdate


def require_like_layers(model: nn.Module, new: Adapter, name: str) -> None:
    """Reject factors with another kernel or other blocks than those they replace.

    Args:
        model: A model with adapters.
        new: The adapter with the new factors.
        name: Name of the adapter in the model.

    Raises:
        AdapterMismatchError: Names the first such module, and counts the others.
    """
    problems = [
        problem
        for path, layer in adapted_layers(model)
        if name in layer.updates and path in new.factors
        if (problem := _problem(path, layer, new, name))
    ]
    if problems:
        more = f"; {len(problems) - 1} more" if len(problems) > 1 else ""
        raise AdapterMismatchError(
            f"The new adapter cannot replace {name!r}: {problems[0]}{more}. Load it under another "
            "name."
        )


def _problem(path: str, layer: AdaptedLayer, new: Adapter, name: str) -> str | None:
    if layer.kernel_shape(layer) != new.convolutions.get(path):
        return f"{path} has another kernel, or other groups of channels"
    misfit = cast(LowRankUpdate, layer.updates[name]).misfit(*new.factors[path])
    return None if misfit is None else f"{path} {misfit}"
