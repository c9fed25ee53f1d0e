"""The arithmetic that is written out to be read, against bitsandbytes' own."""

import pytest
import torch
from bitsandbytes import functional

from lorakit.quantization.arithmetic import (
    absmax_int8,
    bits_per_parameter,
    blockwise_int8,
    code_book_dequantize,
    code_book_quantize,
    normal_float_code_book,
)
from lorakit.quantization.error import SCHEMES, measure_weight


def test_nf4_s_values_are_derived_to_those_of_bitsandbytes():
    table = functional.get_4bit_type("nf4", device="cpu").double()
    assert (normal_float_code_book(4) - table).abs().max() < 1e-6


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_a_code_book_reaches_both_ends_and_has_an_exact_zero(bits):
    values = normal_float_code_book(bits)
    assert len(values) == 2**bits == len(set(values.tolist()))
    assert values[0] == -1 and values[-1] == 1 and values[2 ** (bits - 1) - 1] == 0


def test_the_example_of_the_paper():
    codes, c = absmax_int8(torch.tensor([-1024.0, 5.0, 2048.0, 256.0]))
    assert codes.tolist() == [-64, 0, 127, 16] and abs(c - 0.062) < 1e-4


def test_an_outlier_takes_the_small_numbers_along_and_blocks_save_them():
    x = torch.tensor([0.0, 100.0, 100000.0, 0.0])
    codes, c = absmax_int8(x)
    assert (codes / c).round().tolist() == [0, 0, 100000, 0]
    codes, c = blockwise_int8(x, 2)
    assert (codes.view(2, 2) / c[:, None]).view(-1).round().tolist() == [0, 100, 100000, 0]


def test_blocks_of_nf4_are_those_of_bitsandbytes():
    weight = torch.randn(16, 64)
    codes, absmax = code_book_quantize(weight.view(-1), normal_float_code_book())
    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    assert torch.equal(absmax, state.absmax)
    assert torch.equal((codes[::2] << 4 | codes[1::2]).byte(), packed.view(-1))
    back = code_book_dequantize(codes, absmax, normal_float_code_book())
    expected = functional.dequantize_4bit(packed, state).view(-1)
    assert torch.allclose(back, expected, atol=1e-6)


def test_bits_of_a_parameter_are_counted_and_measured():
    assert bits_per_parameter(nested_block_size=None) == 4 + 32 / 64
    assert bits_per_parameter() == 4 + 8 / 64 + 32 / (64 * 256)
    weight = torch.randn(512, 512)
    measured = {s.name: measure_weight("w", weight, s).bits_per_parameter for s in SCHEMES}
    assert measured["nf4, double"] == bits_per_parameter()
    assert measured["fp4"] == bits_per_parameter(nested_block_size=None)
    assert measured["int8"] == 8 + 32 / 512
