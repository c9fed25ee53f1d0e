"""Reading and writing the layers in which bitsandbytes keeps quantized weights.

The code that creates such layers imports bitsandbytes; if it is not imported, there are none.
"""

import sys
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.layers.class_swap import swap_class
from lorakit.ops.quantized import Layout, QuantizedWeight, dense_copy

BLOCK_SIZE = 64
"""Values of a 4-bit weight that share a scale, unless a checkpoint says otherwise."""

_REWRITTEN_ROWS = 32
"""Rows that the layout for CPUs with AVX-512 bf16 stores together."""

_OWN_ATTRIBUTES = (
    *("compute_dtype", "compute_type_is_set", "quant_state", "quant_storage"),
    *("support_avx512bf16_for_cpu", "state", "index", "source_cls"),
)


def bits_of(module: nn.Module) -> Literal[4, 8] | None:
    """Return the bits of a linear layer's quantized weight; None for any other layer.

    A layer merged into a dense weight still counts: it gets its quantized weight back.
    """
    library: Any = sys.modules.get("bitsandbytes")
    if library is None or not isinstance(module, nn.Linear):
        return None
    if isinstance(module, library.nn.Linear4bit):
        return 4
    return 8 if isinstance(module, library.nn.Linear8bitLt) else None


def quantized_weight(layer: nn.Module) -> QuantizedWeight | None:
    """Return a layer's quantized weight, or None if it currently has none."""
    weight: Any = layer._parameters.get("weight")
    if hasattr(weight, "quant_state"):
        return _four_bit_weight(layer, weight)
    return _eight_bit_weight(layer, weight) if hasattr(weight, "SCB") else None


def _four_bit_weight(layer: Any, weight: Any) -> QuantizedWeight | None:
    state: Any = weight.quant_state or getattr(layer, "quant_state", None)
    if state is None:
        return None
    layout = Layout(tuple(state.shape), state.quant_type, layer.compute_dtype, state.blocksize)
    if not state.nested:
        return QuantizedWeight(layout, weight.data, state.absmax)
    nested: Any = state.state2
    layout = layout._replace(nested_block_size=nested.blocksize)
    return QuantizedWeight(
        layout, weight.data, state.absmax, nested.absmax, nested.code, state.offset
    )


def _eight_bit_weight(layer: Any, weight: Any) -> QuantizedWeight | None:
    absmax: Tensor | None = layer.state.SCB if weight.SCB is None else weight.SCB
    if absmax is None or weight.dtype != torch.int8:
        return None
    return QuantizedWeight(Layout(tuple(weight.shape), "int8", None), weight.data, absmax)


def compute_dtype_of(layer: nn.Module) -> torch.dtype:
    """Return the dtype of products with a quantized weight; float32 where the input decides."""
    dtype: Any = getattr(layer, "compute_dtype", None)
    return dtype or torch.float32


def parameter_count(parameter: Tensor) -> int:
    """Return the number of values in a parameter; a packed one has several per element."""
    state: Any = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def storage_bytes(layers: Iterable[nn.Module]) -> int:
    """Return the bytes of quantized weights: codes, scales and code books, shared ones once."""
    storages: dict[int, int] = {}
    for layer in layers:
        weight: Any = quantized_weight(layer)
        for tensor in () if weight is None else weight[1:]:
            if tensor is not None:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def keep_layout(layer: Any) -> None:
    """Keep bitsandbytes from rewriting a 4-bit weight in evaluation, and undo it if it has.

    On a CPU with AVX-512 bf16 its layers convert themselves to another layout when they are
    evaluated, with the scales rounded to bfloat16. Such a layer cannot be trained through any
    more, and its weight is not the one that was loaded.
    """
    if not hasattr(layer, "support_avx512bf16_for_cpu"):
        return
    state: Any = getattr(layer.weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        functional: Any = sys.modules["bitsandbytes.functional"]
        unpack = functional._convert_weight_packed_for_cpu_inverse
        layer.weight.data, layer.weight.quant_state = unpack(layer.weight.data, state)
    if state is not None and state.absmax.ndim == 2:
        # The other layout keeps scales of one level so; bitsandbytes leaves them when it undoes it,
        # also when a state dict is made.
        state.absmax = state.absmax.t().reshape(-1).float()
    layer.support_avx512bf16_for_cpu = False


def free_layout(layer: Any) -> None:
    """Undo `keep_layout`."""
    if hasattr(layer, "support_avx512bf16_for_cpu"):
        functional: Any = sys.modules["bitsandbytes.functional"]
        layer.support_avx512bf16_for_cpu = functional.has_avx512bf16()
        keep_odd_layouts([layer])


def keep_odd_layouts(layers: Iterable[nn.Module]) -> None:
    """Keep bitsandbytes from rewriting weights whose sizes its other layout cannot have.

    bitsandbytes does not check them, and fails in the first evaluation on a CPU with AVX-512 bf16.
    """
    for layer in layers:
        state: Any = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is None or getattr(state, "packing_format_for_cpu", False):
            continue
        rows, columns = state.shape
        if rows % _REWRITTEN_ROWS or columns % state.blocksize:
            vars(layer)["support_avx512bf16_for_cpu"] = False


def quantize_like(layer: nn.Module, exact: Tensor) -> nn.Parameter:
    """Quantize a weight (out, in) in float32 as a layer's weight is quantized."""
    library: Any = sys.modules["bitsandbytes"]
    stored: Any = layer.weight
    if bits_of(layer) == 8:
        made = library.nn.Int8Params(exact.cpu(), requires_grad=False)
        return made.to(stored.device)
    made = library.nn.Params4bit(
        exact,
        requires_grad=False,
        blocksize=stored.blocksize,
        compress_statistics=stored.compress_statistics,
        quant_type=stored.quant_type,
        quant_storage=stored.quant_storage,
    ).to(stored.device)
    made.quant_state.dtype = stored.quant_state.dtype
    return made


def make_dense_in_place(layer: nn.Module, weight: Tensor) -> None:
    """Turn a quantized layer back into the plain layer it was, with this weight.

    Args:
        layer: A layer of bitsandbytes' plain class.
        weight: (out, in); transposed where the layer was GPT-2's Conv1D.
    """
    attributes = vars(layer)
    source = attributes.get("source_cls", nn.Linear)
    for name in _OWN_ATTRIBUTES:
        attributes.pop(name, None)
    layer._load_state_dict_pre_hooks.clear()  # that of bitsandbytes' 8-bit layer
    if issubclass(source, Conv1D):
        layer.nx, layer.nf = attributes.pop("in_features"), attributes.pop("out_features")
        weight = weight.t().contiguous()
    swap_class(layer, Conv1D if issubclass(source, Conv1D) else nn.Linear)
    layer.weight = nn.Parameter(weight, requires_grad=False)


def dequantize_model(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Make every quantized layer of a model without adapters dense, in place.

    A transformers model is no longer marked as quantized, so `save_pretrained` writes an ordinary
    checkpoint.

    Args:
        model: Any torch module.
        dtype: dtype of the dense weights; None takes each layer's compute dtype.

    Returns: The number of layers that have become dense.
    """
    layers = [module for module in model.modules() if bits_of(module)]
    for layer in layers:
        weight: Any = quantized_weight(layer)
        make_dense_in_place(layer, dense_copy(weight, dtype or compute_dtype_of(layer)))
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(name, None)
    return len(layers)


def forget_deserialization(model: nn.Module) -> None:
    """Let a transformers model that was read from a quantized checkpoint be saved.

    `save_pretrained` reverts each conversion of a weight that loading made. Reading bitsandbytes'
    tensors has no reversal, and needs none.
    """
    conversions: Any = getattr(model, "_weight_conversions", None)
    if conversions:
        vars(model)["_weight_conversions"] = [
            each
            for each in conversions
            if not any(hasattr(one, "hf_quantizer") for one in getattr(each, "operations", ()))
        ]
