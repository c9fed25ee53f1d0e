"""LoRA on bitsandbytes' linear layers, whose frozen weight is kept in 4 or 8 bits.

They run the same autograd node as any linear layer. It dequantizes the weight once in forward and
once in backward, into a buffer that all layers share, and keeps no dense copy in between.
"""

from typing import Any, ClassVar, Self

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import Tensor, nn

from lorakit.layers.bitsandbytes_storage import (
    compute_dtype_of,
    free_layout,
    keep_layout,
    make_dense_in_place,
    quantize_like,
    quantized_weight,
)
from lorakit.layers.class_swap import mixed_class, swap_class
from lorakit.layers.hooks import has_foreign_forward
from lorakit.layers.kinds.linear import AdaptedLinear
from lorakit.ops import low_rank_linear
from lorakit.ops.quantized import Weight, dense_copy


class _SharedNode(nn.Module):
    """Mixin for quantized layers without updates, in a model that carries adapters."""

    plain_class: ClassVar[type[nn.Module]]
    bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, in) to (*, out)."""
        return low_rank_linear(x, quantized_weight(self), self.bias, ())  # type: ignore[arg-type]  # quantized here


_SHARED_NODE: dict[type[nn.Module], type[nn.Module]] = {
    plain: mixed_class(_SharedNode, plain, "SharedNode") for plain in (Linear4bit, Linear8bitLt)
}


def take_over(layer: nn.Module) -> None:
    """Make a quantized layer without updates compute as those with updates do, in place.

    It then uses the shared buffer, its weight keeps the layout it was loaded in, and an 8-bit layer
    does not round its input. Other layers, and layers whose class something else has changed, stay
    as they are.
    """
    shared = _SHARED_NODE.get(type(layer))
    if shared is not None and quantized_weight(layer) is not None:
        keep_layout(layer)
        if not has_foreign_forward(layer):
            swap_class(layer, shared)


def give_back(layer: nn.Module) -> None:
    """Undo `take_over`."""
    if isinstance(layer, _SharedNode):
        swap_class(layer, layer.plain_class)
    if type(layer) in _SHARED_NODE:
        free_layout(layer)


class QuantizedLinear(AdaptedLinear):
    """Base class of adapted layers with a quantized weight."""

    @classmethod
    def adapt_in_place(cls, module: nn.Module) -> Self:
        """Swap the class of a quantized layer and return the very same object, adapted."""
        keep_layout(module)
        return super().adapt_in_place(module)

    def restore_in_place(self) -> None:
        """Swap the plain class back: bitsandbytes', or torch's where a merge made it dense."""
        super().restore_in_place()
        if quantized_weight(self) is None:
            make_dense_in_place(self, self.weight.detach())

    @classmethod
    def compute_dtype_of(cls, module: nn.Module) -> torch.dtype:
        """Return the dtype of products with the weight; float32 where the input decides."""
        return compute_dtype_of(module)

    @classmethod
    def base_dtype_name(cls, module: nn.Module) -> str:
        """Return the name of the weight's format and of its compute dtype."""
        weight: Any = quantized_weight(module)
        dtype = str(compute_dtype_of(module)).removeprefix("torch.")
        return f"{weight.layout.quant_type} ({dtype})"

    def base_weight(self) -> Weight:
        """Return the quantized weight, or the dense one of a merged layer."""
        weight = quantized_weight(self)
        return self.weight if weight is None else weight

    def base_output(self, x: Tensor) -> Tensor:
        """Return the output of the base alone."""
        return low_rank_linear(x, self.base_weight(), self.bias, ())

    def exact_weight(self) -> Tensor:
        """Return the weight in float32, dequantized."""
        return dense_copy(quantized_weight(self), torch.float32)  # type: ignore[arg-type]  # quantized here

    def put_merged(self, exact: Tensor, dense_dtype: torch.dtype, requantize: bool) -> float:
        """Replace the base's weight by a merged one; return its largest rounding error."""
        if not requantize:
            merged = exact.to(dense_dtype)
            self._put_aside("weight", nn.Parameter(merged, requires_grad=False))
            return (merged.to(exact.dtype) - exact).abs().max().item()
        self._put_aside("weight", quantize_like(self, exact))
        return (dense_copy(quantized_weight(self), torch.float32) - exact).abs().max().item()  # type: ignore[arg-type]  # quantized here


class LoraLinear4bit(QuantizedLinear, Linear4bit):
    """A linear layer h = x dequantize(W0)ᵀ + b + Σ s (x Aᵀ) Bᵀ with W0 in NF4 or FP4.

    Source: Dettmers et al. 2023, arXiv:2305.14314, equation 5.
    """

    plain_class = Linear4bit


class LoraLinear8bit(QuantizedLinear, Linear8bitLt):
    """The same with W0 in int8, one scale for each row.

    The weight is dequantized and the input is not rounded; bitsandbytes' kernel on a GPU rounds the
    input to int8 as well.

    Source: Dettmers et al. 2022, arXiv:2208.07339, section 2 (vector-wise quantization).
    """

    plain_class = Linear8bitLt


_ADAPTED = {Linear4bit: LoraLinear4bit, Linear8bitLt: LoraLinear8bit}
ADAPTED_CLASSES = _ADAPTED | {_SHARED_NODE[plain]: adapted for plain, adapted in _ADAPTED.items()}
"""The adapted class of each plain class."""
