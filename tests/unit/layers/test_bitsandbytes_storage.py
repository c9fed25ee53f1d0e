"""What is read from bitsandbytes' layers, and what is written back."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

pytest.importorskip("bitsandbytes")

from lorakit.layers.bitsandbytes_storage import (
    bits_of,
    compute_dtype_of,
    dequantize_model,
    forget_deserialization,
    keep_odd_layouts,
    parameter_count,
    quantize_like,
    quantized_weight,
    storage_bytes,
)
from lorakit.ops.quantized import dense_copy
from tiny_models.quantized import EIGHT, FOUR, quantized


@pytest.mark.parametrize(("options", "bits"), [(FOUR, 4), (EIGHT, 8)])
def test_a_layer_is_read_and_quantized_again_to_the_same_codes(options, bits):
    layer = quantized(nn.Sequential(nn.Linear(64, 32)), **options)[0]
    weight = quantized_weight(layer)
    assert bits_of(layer) == bits and weight.shape == (32, 64)
    assert parameter_count(layer.weight) == 64 * 32
    exact = dense_copy(weight, torch.float32)
    again = quantize_like(layer, exact)
    assert again.shape == layer.weight.shape and again.dtype == layer.weight.dtype
    assert (again.data == layer.weight.data).float().mean() > 0.99


def test_a_plain_layer_has_no_bits():
    layer = nn.Linear(4, 4)
    assert bits_of(layer) is None and quantized_weight(layer) is None
    assert parameter_count(layer.weight) == 16 and storage_bytes([layer]) == 0
    assert compute_dtype_of(layer) == torch.float32


def test_bytes_of_shared_code_books_count_once():
    layer = quantized(nn.Sequential(nn.Linear(64, 64)), **FOUR)[0]
    weight = quantized_weight(layer)
    tensors = {t.data_ptr(): t.untyped_storage().nbytes() for t in weight[1:] if t is not None}
    assert storage_bytes([layer]) == storage_bytes([layer, layer]) == sum(tensors.values())
    assert storage_bytes([layer]) > 64 * 64 / 2


def test_a_model_becomes_dense_in_place():
    model = quantized(nn.Sequential(nn.Linear(64, 32), Conv1D(32, 32)), **FOUR)
    weight = dense_copy(quantized_weight(model[0]), torch.float32)
    assert dequantize_model(model, torch.float32) == 2
    assert type(model[0]) is nn.Linear and type(model[1]) is Conv1D
    assert torch.equal(model[0].weight, weight)


def test_layouts_that_bitsandbytes_would_get_wrong_are_kept():
    odd, even = quantized(nn.Sequential(nn.Linear(64, 33), nn.Linear(64, 32)), **FOUR)
    keep_odd_layouts([odd, even])
    assert vars(odd)["support_avx512bf16_for_cpu"] is False


def test_only_the_reading_of_quantized_tensors_is_forgotten():
    class Reading:
        hf_quantizer = object()

    class Conversion:
        def __init__(self, *operations):
            self.operations = operations

    renaming, merging, reading = object(), Conversion(object()), Conversion(Reading())
    model = nn.Linear(2, 2)
    forget_deserialization(model)
    assert not hasattr(model, "_weight_conversions")
    model._weight_conversions = [renaming, merging, reading]
    forget_deserialization(model)
    assert model._weight_conversions == [renaming, merging]
