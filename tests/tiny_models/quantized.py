"""Tiny quantized models and weights, and dense ones with the same values."""

import copy

import torch

from lorakit import QuantizationConfig, quantize_model
from lorakit.layers.bitsandbytes_storage import dequantize_model
from lorakit.ops.quantized import Layout, QuantizedWeight

FOUR = {"bits": 4, "compute_dtype": "float32"}
EIGHT = {"bits": 8, "compute_dtype": "float32"}
SETTINGS = {
    "nf4, double": FOUR,
    "nf4": FOUR | {"double_quant": False},
    "fp4, double": FOUR | {"quant_type": "fp4"},
    "fp4": FOUR | {"quant_type": "fp4", "double_quant": False},
    "int8": EIGHT,
}


def quantized(model, **settings):
    """Quantize a model in place, to 4 bits that compute in float32 by default."""
    return quantize_model(model, QuantizationConfig(**FOUR | settings))


def dense_twin(model, dtype=torch.float32):
    """Return a dense copy of a quantized model without adapters, with the same values."""
    twin = copy.deepcopy(model)
    dequantize_model(twin, dtype)
    return twin


def four_bit_weight(dense, quant_type="nf4", double_quant=True, compute_dtype=torch.float32):
    """Quantize a dense weight; return it and its dequantized values by bitsandbytes."""
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(
        dense, quant_type=quant_type, compress_statistics=double_quant
    )
    nested = state.state2
    second_block = 256 if double_quant else 0
    layout = Layout(tuple(dense.shape), quant_type, compute_dtype, 64, second_block)
    weight = QuantizedWeight(
        layout,
        codes,
        state.absmax,
        nested.absmax if double_quant else None,
        nested.code if double_quant else None,
        state.offset,
    )
    return weight, functional.dequantize_4bit(codes, state)


def eight_bit_weight(dense, compute_dtype=None):
    """Quantize a dense weight row by row; return it and its dequantized values."""
    from bitsandbytes import functional

    codes, absmax, _ = functional.int8_vectorwise_quant(dense.half())
    weight = QuantizedWeight(Layout(tuple(dense.shape), "int8", compute_dtype), codes, absmax)
    return weight, functional.int8_vectorwise_dequant(codes, absmax).float()
