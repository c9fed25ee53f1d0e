"""Which class adapts a module, and why some cannot be adapted."""

import sys
from functools import cache

from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.injection.selection.attention import OUTPUT_OBSTACLE, attention_obstacle, is_output
from lorakit.layers import (
    AdaptedLayer,
    LoraConv1D,
    LoraConv1d,
    LoraConv2d,
    LoraConv3d,
    LoraEmbedding,
    LoraLinear,
    plain_class_of,
)
from lorakit.layers.bitsandbytes_storage import bits_of, quantized_weight
from lorakit.layers.kinds.attention import LoraMultiheadAttention
from lorakit.layers.kinds.linear_subclass import linear_subclass, runs_as_linear
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.kinds.read_weight import LoraReadWeight

_ADAPTED_CLASSES: dict[type[nn.Module], type[AdaptedLayer]] = {
    nn.Linear: LoraLinear,
    Conv1D: LoraConv1D,
    nn.Embedding: LoraEmbedding,
    nn.Conv1d: LoraConv1d,
    nn.Conv2d: LoraConv2d,
    nn.Conv3d: LoraConv3d,
    nn.MultiheadAttention: LoraMultiheadAttention,
}


def adapted_classes() -> dict[type[nn.Module], type[AdaptedLayer]]:
    """Return the adapted class of each plain class.

    It includes those of bitsandbytes once that is imported: before, there are no such layers, and
    importing it takes time.
    """
    return _with_quantized() if "bitsandbytes" in sys.modules else _ADAPTED_CLASSES


@cache
def _with_quantized() -> dict[type[nn.Module], type[AdaptedLayer]]:
    from lorakit.layers.kinds import quantized

    return {**_ADAPTED_CLASSES, **quantized.ADAPTED_CLASSES}


def adapted_class_of(module: nn.Module) -> type[AdaptedLayer] | None:
    """Return the class that adapts this module, or None if there is none."""
    if isinstance(module, AdaptedLayer):
        is_by_name = not (is_output(module) or isinstance(module, LoraReadWeight))
        return type(module) if is_by_name else None
    if obstacle(module):
        return None
    kind = plain_class_of(module)
    known = adapted_classes().get(kind)
    return linear_subclass(kind) if known is None and issubclass(kind, nn.Linear) else known


def obstacle(module: nn.Module) -> str | None:
    """Return why a layer that looks adaptable is not, or None."""
    known = adapted_classes()
    if is_output(module):
        return OUTPUT_OBSTACLE
    if isinstance(module, AdaptedLayer) or not isinstance(module, tuple(known)):
        return None
    kind = plain_class_of(module)
    if kind not in known and not runs_as_linear(module):
        return f"{kind.__name__} is a subclass with its own forward"
    if bits_of(module) is not None and quantized_weight(module) is None:
        return f"this {kind.__name__} is not quantized yet; move the model to its device first"
    if isinstance(module, nn.MultiheadAttention):
        return attention_obstacle(module)
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm rewrites the base's weight"
    return None


def describe(module: nn.Module) -> str:
    """Return the name of this module's plain class, for users."""
    if isinstance(module, AdaptedParameter):
        return f"{describe(module.weight_owner)} ({module.experts})"
    kind = plain_class_of(module)
    return getattr(kind, "plain_class", kind).__name__
