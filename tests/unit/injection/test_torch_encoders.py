"""torch's fast paths through encoders are off where something is adapted, and only there."""

import torch
from torch import nn

from lorakit.config import LoraConfig
from lorakit.injection import add_adapter, set_adapter, unload
from tiny_models import Encoder, tokens


class Subclassed(nn.TransformerEncoderLayer):
    """Has its parent's fast path."""


def test_values_that_were_there_come_back():
    layer = Subclassed(8, 2, 16, batch_first=True)
    layer.activation_relu_or_gelu = 2
    model = nn.ModuleDict({"inside": layer, "score": nn.Linear(8, 8)})
    add_adapter(model, LoraConfig(r=1, target_modules=["score"]))
    assert layer.activation_relu_or_gelu == 2  # what is adapted stands outside of it
    add_adapter(model, LoraConfig(r=1, target_modules=["linear1"]), "other")
    assert layer.activation_relu_or_gelu == 0
    set_adapter(model, "other")
    assert layer.activation_relu_or_gelu == 0
    unload(model)
    assert layer.activation_relu_or_gelu == 2
    assert not any("lorakit" in name for name in vars(layer))


def test_a_model_that_is_one_encoder_layer_acts_with_its_update():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = layer(x)
        add_adapter(layer, LoraConfig(r=2, target_modules=["linear2"], init_lora_weights=False))
        assert (layer(x) - before).abs().max() > 1e-3


def test_a_module_trained_in_full_counts_as_adapted():
    model = Encoder()
    config = LoraConfig(r=1, target_modules=["score"], modules_to_save=["layers.1.norm1"])
    add_adapter(model, config)
    layers = model.encoder.layers
    assert [layer.activation_relu_or_gelu for layer in layers] == [1, 0]
    assert model.encoder.use_nested_tensor is False
    with torch.no_grad():
        expected = model(**tokens())
        layers[1].norm1.trained_copies["default"].weight.mul_(2)
        assert (model(**tokens()) - expected).abs().max() > 1e-3
