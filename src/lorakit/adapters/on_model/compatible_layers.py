"""Checks of kernels and blocks before factors are exchanged."""

from torch import nn

from lorakit.adapters.adapter import Adapter
from lorakit.errors import AdapterMismatchError
from lorakit.injection.state import updates_named
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
        for path, layer, update in updates_named(model, name)
        if path in new.factors and (problem := _problem(path, layer, update, new))
    ]
    if problems:
        more = f"; {len(problems) - 1} more" if len(problems) > 1 else ""
        raise AdapterMismatchError(
            f"The new adapter cannot replace {name!r}: {problems[0]}{more}. Load it under another "
            "name."
        )


def _problem(path: str, layer: AdaptedLayer, update: LowRankUpdate, new: Adapter) -> str | None:
    if layer.kernel_shape(layer) != new.convolutions.get(path):
        return f"{path} has another kernel, or other groups of channels"
    misfit = update.misfit(*new.factors[path])
    return None if misfit is None else f"{path} {misfit}"
