"""Checks of kernels and blocks before factors are exchanged."""

from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter
from lorakit.errors import AdapterMismatchError
from lorakit.injection.state import adapted_layers
from lorakit.layers import AdaptedLayer
from lorakit.layers.updates.sliced_update import SlicedUpdate, out_of_blocks


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
    update = layer.updates[name]
    return _misfit(path, update, *new.factors[path]) if isinstance(update, SlicedUpdate) else None


def _misfit(path: str, place: SlicedUpdate, A: Tensor, B: Tensor) -> str | None:
    """Return why factors do not fit an update with one block per slice or group of a layer."""
    r = place.lora_A.shape[0]
    if A.shape[0] != r:
        return f"{path} has rank {A.shape[0]} in all its blocks, expected {r}"
    if out_of_blocks(B, place.parts) is None:
        return f"{path} mixes {len(place.parts)} slices that are adapted separately there"
    return None
