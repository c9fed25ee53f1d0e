"""Adapted layers on bitsandbytes' weights: swapped in and out, merged, and kept as loaded."""

import bitsandbytes
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.layers import LowRankUpdate
from lorakit.layers.bitsandbytes_storage import (
    bits_of,
    dequantize_model,
    free_layout,
    keep_layout,
    parameter_count,
    quantized_weight,
    storage_bytes,
)
from lorakit.layers.kinds.quantized import LoraLinear4bit, LoraLinear8bit
from lorakit.ops.quantized import dense_copy
from tiny_models.quantized import SETTINGS, dense_twin, quantized
from tolerances import TOLERANCE, largest_error


def layer_of(settings, inside=64, out=96, bias=True):
    torch.manual_seed(0)
    return quantized(nn.Sequential(nn.Linear(inside, out, bias=bias)), **settings)[0]


def adapt(layer, p=0.0):
    torch.manual_seed(1)
    adapted_class = LoraLinear4bit if bits_of(layer) == 4 else LoraLinear8bit
    adapted = adapted_class.adapt_in_place(layer)
    A, B = torch.randn(4, layer.in_features) * 0.1, torch.randn(layer.out_features, 4) * 0.1
    adapted.updates["a"] = LowRankUpdate(A, B, 0.5, p)
    adapted.activate(("a",))
    return adapted


@pytest.fixture(params=SETTINGS)
def settings(request):
    return SETTINGS[request.param]


def test_swap_keeps_the_object_and_restore_leaves_no_trace(settings):
    layer = layer_of(settings)
    plain, weight, names = type(layer), layer.weight, sorted(vars(layer))
    adapted = adapt(layer)
    assert adapted is layer and isinstance(layer, plain) and layer.weight is weight
    layer.restore_in_place()
    assert type(layer) is plain and layer.weight is weight and sorted(vars(layer)) == names


def test_output_is_the_dense_layer_s_with_the_update(settings):
    layer = layer_of(settings)
    dense = dense_copy(quantized_weight(layer), torch.float32)
    x, bias = torch.randn(5, 64), layer.bias.detach().clone()
    adapted = adapt(layer)
    expected = x @ (dense + adapted.updates["a"].delta_weight()).t() + bias
    assert largest_error(adapted(x), expected) <= TOLERANCE[torch.float32]
    adapted.activate(())
    assert largest_error(adapted(x), x @ dense.t() + bias) <= TOLERANCE[torch.float32]


def test_a_dense_merge_is_one_float32_sum_and_comes_off_again(settings):
    adapted = adapt(layer_of(settings))
    x, weight = torch.randn(5, 64), adapted.weight
    before, expected = [weight.data.clone(), quantized_weight(adapted)], adapted(x)
    rounding = adapted.merge(torch.bfloat16)
    assert adapted.weight.dtype == torch.bfloat16 and 0 < rounding < 0.01
    adapted.unmerge()
    assert adapted.weight is weight and torch.equal(weight.data, before[0])
    assert adapted.merge(torch.float32) == 0.0
    assert largest_error(adapted(x), expected) <= TOLERANCE[torch.float32]
    adapted.keep_merged()
    adapted.restore_in_place()
    assert type(adapted) is nn.Linear and not adapted.weight.requires_grad
    assert sorted(vars(adapted)) == sorted(vars(nn.Linear(1, 1)))
    assert largest_error(adapted(x), expected) <= TOLERANCE[torch.float32]


def test_a_requantized_merge_says_what_it_costs(settings):
    adapted = adapt(layer_of(settings))
    exact = adapted.exact_weight() + adapted.updates["a"].delta_weight()
    largest = adapted.merge(requantize=True)
    merged = dense_copy(quantized_weight(adapted), torch.float32)
    assert largest == (merged - exact).abs().max().item() > 0
    assert quantized_weight(adapted).layout.quant_type == settings.get(
        "quant_type", "nf4" if settings["bits"] == 4 else "int8"
    )
    assert adapted.updates and not adapted.acting_updates()
    adapted.keep_merged()
    adapted.restore_in_place()
    assert bits_of(adapted) == settings["bits"]


def test_gpt2_s_layers_come_back_transposed(settings):
    layer = Conv1D(96, 64)
    nn.init.normal_(layer.weight)
    model = quantized(nn.Sequential(layer), **settings)
    expected, x = dense_copy(quantized_weight(model[0]), torch.float32), torch.randn(2, 64)
    dequantize_model(model)
    assert type(model[0]) is Conv1D and model[0].weight.shape == (64, 96)
    assert torch.equal(model[0].weight, expected.t()) and model[0].nf == 96 and model[0].nx == 64
    assert model[0](x).shape == (2, 96)


def test_a_packed_parameter_counts_all_of_its_numbers(settings):
    assert parameter_count(layer_of(settings).weight) == 64 * 96
    assert parameter_count(nn.Parameter(torch.zeros(3, 2))) == 6


def test_bytes_are_those_of_the_storages():
    layer = layer_of(SETTINGS["nf4"], 256, 512, bias=False)
    count = 256 * 512
    assert storage_bytes([layer]) == count // 2 + 4 * (count // 64)
    double = layer_of(SETTINGS["nf4, double"], 256, 512, bias=False)
    code_book, mean = 4 * 256, 4
    expected = count // 2 + count // 64 + 4 * (count // 64 // 256) + code_book + mean
    assert storage_bytes([double]) == expected
    assert storage_bytes([double, double]) == expected
    assert storage_bytes([nn.Linear(2, 2)]) == 0


@pytest.mark.parametrize("saved", [False, True], ids=["", "with a state dict"])
@pytest.mark.parametrize("scales", ["nf4", "nf4, double"])
def test_a_layout_that_bitsandbytes_changed_is_changed_back(scales, saved):
    layer = layer_of(SETTINGS[scales], 128, 64)
    expected = dense_copy(quantized_weight(layer), torch.float32)
    functional = bitsandbytes.functional
    packed = functional._convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
    layer.weight.data, layer.weight.quant_state = packed
    layer.support_avx512bf16_for_cpu = True
    if saved:
        layer.state_dict()  # bitsandbytes undoes a part of it
    keep_layout(layer)
    assert layer.support_avx512bf16_for_cpu is False
    got = dense_copy(quantized_weight(layer), torch.float32)
    # The scales have been rounded to bfloat16 meanwhile, and to 8 bits once more.
    assert largest_error(got, expected) <= 2 * TOLERANCE[torch.bfloat16]
    free_layout(layer)
    assert layer.support_avx512bf16_for_cpu == functional.has_avx512bf16()
    keep_layout(nn.Linear(2, 2))


def test_other_layers_have_no_bits():
    assert bits_of(nn.Linear(2, 2)) is None and bits_of(nn.Embedding(2, 2)) is None
    assert quantized_weight(nn.Linear(2, 2)) is None and quantized_weight(nn.ReLU()) is None


def test_a_dense_twin_has_no_quantized_layer(settings):
    twin = dense_twin(quantized(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), **settings))
    assert type(twin[0]) is nn.Linear and twin[0].weight.dtype == torch.float32


def test_layers_keep_their_layout_while_the_model_carries_an_adapter():
    from lorakit import LoraConfig, add_adapter, unload

    model = quantized(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    for layer in model:
        layer.support_avx512bf16_for_cpu = True  # as on a CPU that has these instructions
    add_adapter(model, LoraConfig(r=2, target_modules=["0"]))
    assert [layer.support_avx512bf16_for_cpu for layer in model] == [False, False]
    unload(model)
    ours = bitsandbytes.functional.has_avx512bf16()
    assert [layer.support_avx512bf16_for_cpu for layer in model] == [ours, ours]
