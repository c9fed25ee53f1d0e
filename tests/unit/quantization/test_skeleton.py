"""Quantized skeletons have the layers and storages of the quantized model."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lorakit.config import QuantizationConfig
from lorakit.errors import QuantizationError, TargetError
from lorakit.layers.bitsandbytes_storage import quantized_weight
from lorakit.quantization.skeleton import quantize_skeleton
from tiny_models import TinyNet, gpt2, llama
from tiny_models.quantized import SETTINGS, quantized

CPU = torch.device("cpu")


def skeleton(build, trained_in_full=(), device=CPU, **settings):
    with device:
        model = build()
    config = QuantizationConfig(**settings)
    quantize_skeleton(model, config, torch.float32, device, trained_in_full, nullcontext)
    return model


def storages(model):
    """Return dtype and shape of every tensor, those of quantized weights among them."""
    found = {}
    for path, module in model.named_modules():
        weight = quantized_weight(module)
        parts = weight[1:] if weight is not None else module._parameters.values()
        sizes = [part is not None and (part.dtype, part.shape) for part in parts]
        found[path] = (type(module), weight and weight.layout, sizes)
    return found


@pytest.mark.parametrize("build", [llama, gpt2], ids=lambda build: build.__name__)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_tensor_is_that_of_the_quantized_model(build, settings):
    assert storages(skeleton(build, **settings)) == storages(quantized(build(), **settings))


def test_no_tensor_has_memory_where_tensors_are_fake():
    model = skeleton(llama, device=torch.device("meta"), **SETTINGS["nf4, double"])
    layer = model.model.layers[0].self_attn.q_proj
    assert {part.device.type for part in quantized_weight(layer)[1:]} == {"meta"}


def test_modules_that_are_trained_in_full_or_skipped_stay_dense():
    model = skeleton(llama, ["down_proj"], skip_modules=("q_proj",), **SETTINGS["nf4"])
    layer = model.model.layers[0]
    assert type(layer.mlp.down_proj) is type(layer.self_attn.q_proj) is nn.Linear
    assert quantized_weight(layer.mlp.up_proj) is not None and type(model.lm_head) is nn.Linear


def test_what_loading_would_refuse_is_refused():
    with pytest.raises(QuantizationError, match=r"layers\.0\.up .*multiple of the 64"):
        skeleton(lambda: TinyNet(width=5), bits=4)
    with pytest.raises(TargetError, match="q_porj"):
        skeleton(llama, bits=4, skip_modules=("q_porj",))
