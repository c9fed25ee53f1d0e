"""The class that adapts a module, and why some cannot be adapted."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit import LoraConfig, add_adapter
from lorakit.injection.selection.adapted_classes import (
    adapted_class_of,
    adapted_classes,
    describe,
    obstacle,
)
from lorakit.injection.selection.parameters import class_for
from lorakit.injection.state import base_modules
from lorakit.layers import LoraLinear
from lorakit.layers.kinds.attention import LoraAttentionOutput
from tiny_models import TinyNet, mixtral


class Named(nn.Linear):
    """Computes as nn.Linear does."""


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


PLAIN = {
    "linear": nn.Linear(4, 4),
    "transposed": Conv1D(4, 4),
    "embedding": nn.Embedding(4, 4),
    "1-D": nn.Conv1d(2, 2, 3),
    "2-D": nn.Conv2d(2, 2, 3),
    "3-D": nn.Conv3d(2, 2, 3),
    "attention": nn.MultiheadAttention(4, 2),
}


@pytest.mark.parametrize("module", PLAIN.values(), ids=PLAIN)
def test_plain_layers_are_adapted_by_the_class_of_their_kind_and_stay_so(module):
    kind = type(module)
    assert obstacle(module) is None
    found = adapted_class_of(module)
    assert found is adapted_classes()[kind] and found.plain_class is kind
    model = nn.ModuleDict({"layer": module})
    add_adapter(model, LoraConfig(r=1, target_modules=["layer"]))
    assert adapted_class_of(model["layer"]) is type(model["layer"])
    assert describe(model["layer"]) == kind.__name__


OBSTACLES = {
    "own forward": (Scaled(4, 4), "Scaled is a subclass with its own forward"),
    "own forward, transposed": (type("Own", (Conv1D,), {})(4, 4), "Own is a subclass"),
    "max_norm": (nn.Embedding(4, 4, max_norm=1.0), "max_norm rewrites the base's weight"),
    "three inputs": (nn.MultiheadAttention(4, 2, kdim=6), "kdim or vdim differs"),
    "output": (nn.MultiheadAttention(4, 2).out_proj, "reads its weight without calling it"),
}


@pytest.mark.parametrize(("module", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_a_layer_that_an_update_would_not_reach_has_an_obstacle(module, reason):
    assert reason in obstacle(module)
    assert adapted_class_of(module) is None


@pytest.mark.parametrize("module", [nn.LayerNorm(4), nn.Bilinear(4, 4, 4), TinyNet()], ids=describe)
def test_what_does_not_look_adaptable_has_no_class_and_no_obstacle(module):
    assert adapted_class_of(module) is None and obstacle(module) is None


def test_a_subclass_that_computes_the_same_keeps_its_methods():
    found = adapted_class_of(Named(4, 4))
    assert issubclass(found, LoraLinear) and issubclass(found, Named)
    assert found is adapted_class_of(Named(2, 3))


def test_only_an_attention_brings_its_output_projection_along():
    attention = nn.MultiheadAttention(4, 2)
    assert adapted_class_of(attention.out_proj) is None
    assert class_for(attention.out_proj, True) is LoraAttentionOutput
    assert class_for(nn.Linear(4, 4), True) is LoraLinear


def test_a_weight_that_is_quantized_on_its_way_to_a_gpu_waits_for_it():
    from bitsandbytes.nn import Linear4bit

    assert "not quantized yet; move the model to its device first" in obstacle(Linear4bit(64, 4))


def test_parameters_and_copies_are_called_by_their_plain_class():
    model = mixtral()
    config = LoraConfig(r=1, target_parameters=["experts.down_proj"], modules_to_save=["norm"])
    add_adapter(model, config)
    modules = dict(base_modules(model))
    experts = "model.layers.0.mlp.experts"
    assert describe(modules[experts]) == "MixtralExperts"
    assert describe(modules[f"{experts}.down_proj"]).startswith("MixtralExperts (")
    assert describe(modules["model.norm"]) == "MixtralRMSNorm"
    assert torch.is_tensor(modules["model.norm"].weight)
