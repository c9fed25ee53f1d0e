"""The dtype of products: autocast's, the weight's, or that of the input."""

import pytest
import torch

from lorakit.errors import DtypeError
from lorakit.ops.compute_dtype import (
    autocast_dtype,
    autocast_off,
    compute_dtype_of,
    flatten_tokens,
    output_dtype_of,
)
from lorakit.ops.quantized import Layout, QuantizedWeight

HALF = torch.bfloat16


def quantized(dtype):
    return QuantizedWeight(Layout((4, 6), "nf4", dtype, 64), torch.zeros(1), torch.zeros(1))


def test_a_dense_weight_has_the_dtype_of_its_input():
    x = torch.randn(2, 6)
    assert compute_dtype_of(x, [torch.randn(4, 6)]) == torch.float32
    with pytest.raises(DtypeError, match=r"is torch\.float32 but its weight is torch\.bfloat16"):
        compute_dtype_of(x, [torch.randn(4, 6).to(HALF)])


def test_a_quantized_weight_decides_unless_the_input_is_double():
    x = torch.randn(2, 6)
    assert compute_dtype_of(x, [quantized(HALF)]) == HALF
    assert compute_dtype_of(x, [quantized(None)]) == torch.float32
    assert compute_dtype_of(x.double(), [quantized(HALF)]) == torch.float64
    assert compute_dtype_of(x, [quantized(HALF), torch.randn(4, 6)]) == torch.float32


def test_autocast_decides_for_all_but_double():
    x = torch.randn(2, 6)
    with torch.autocast("cpu", dtype=HALF):
        assert autocast_dtype("cpu") == HALF
        assert compute_dtype_of(x, [torch.randn(4, 6)]) == output_dtype_of(x, HALF) == HALF
        assert compute_dtype_of(x.double(), [torch.randn(4, 6).double()]) == torch.float64
        with autocast_off("cpu"):
            assert autocast_dtype("cpu") is None
    assert autocast_dtype("cpu") is autocast_dtype("meta") is None
    assert output_dtype_of(x, HALF) == torch.float32


def test_flattening():
    assert flatten_tokens(None, HALF) is None
    got = flatten_tokens(torch.randn(2, 3, 6), HALF)
    assert got.shape == (6, 6) and got.dtype == HALF
