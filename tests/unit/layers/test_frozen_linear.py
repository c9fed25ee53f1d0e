"""A base with the faster layers is the same base: in training, adapted, merged and copied."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import lorakit
from lorakit import LoraConfig, add_adapter, merge_and_unload, unload
from lorakit.layers import frozen_linear
from lorakit.layers.frozen_linear import (
    FrozenConv1D,
    FrozenLinear,
    restore_plain_layers_,
    speed_up_frozen_layers_,
)
from lorakit.ops import weight_products
from tiny_models import bert, gpt2, llama

IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """Take the quicker library on any processor and for any size."""
    monkeypatch.setattr(frozen_linear, "onednn_is_quicker", lambda: True)
    monkeypatch.setattr(weight_products, "onednn_is_quicker", lambda: True)
    monkeypatch.setattr(weight_products, "LEAST_OPERATIONS", 1)


@pytest.fixture
def products(monkeypatch):
    """Return the shapes that the quicker library was given."""
    shapes, product = [], weight_products._linear

    def noted(x, W, bias):
        shapes.append((*x.shape, W.shape[0]))
        return product(x, W, bias)

    monkeypatch.setattr(weight_products, "_linear", noted)
    return shapes


def classes_of(model):
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize(
    ("build", "target"), [(llama, "q_proj"), (bert, "query"), (gpt2, "c_attn")]
)
def test_a_base_computes_and_trains_as_before(build, target, products):
    model = build().eval().requires_grad_(False)
    fast = copy.deepcopy(model)
    speed_up_frozen_layers_(fast)
    assert {FrozenLinear, FrozenConv1D} & set(classes_of(fast))
    gradients = []
    for each in (model, fast):
        torch.manual_seed(0)
        add_adapter(each, LoraConfig(r=2, target_modules=[target]))
        for name, parameter in each.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.01)
        output = each(IDS)[0]
        output.square().sum().backward()
        found = {n: p.grad for n, p in each.named_parameters() if p.grad is not None}
        gradients.append({**found, "output": output.detach()})
    assert products
    torch.testing.assert_close(*gradients, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_an_adapter_leaves_a_layer_of_torch(build):
    model, plain = build(), build()
    speed_up_frozen_layers_(model)
    config = LoraConfig(r=2, target_modules="all-linear")
    injections = [add_adapter(each, config) for each in (model, plain)]
    assert classes_of(model) == classes_of(plain)
    assert str(injections[0]) == str(injections[1])
    for each in (model, plain):
        unload(each)
    assert classes_of(model) == classes_of(plain)


def test_a_merged_model_computes_the_same(products):
    model, plain = llama(), llama()
    speed_up_frozen_layers_(model)
    for each in (model, plain):
        torch.manual_seed(0)
        add_adapter(each, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
        merge_and_unload(each)
    assert model.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits)
    assert products


def test_a_layer_that_is_trained_is_torch_s(products):
    layer = nn.Sequential(nn.Linear(8, 6))
    speed_up_frozen_layers_(layer)
    x = torch.randn(5, 8, requires_grad=True)
    layer(x).sum().backward()
    assert layer[0].weight.grad is not None and not products
    layer.requires_grad_(False)
    layer[0].bias.requires_grad_()
    layer[0].bias.grad = None
    layer(x).sum().backward()
    assert layer[0].bias.grad is not None and not products


def test_what_keeps_its_class():
    model = llama().bfloat16()
    model.model.layers[0].mlp.up_proj.float()
    model.model.layers[0].mlp.down_proj.float().forward = lambda x: x
    model.lm_head.float()
    before = classes_of(model)
    speed_up_frozen_layers_(model)
    paths = [path for path, _ in model.named_modules()]
    after = zip(paths, before, classes_of(model), strict=True)
    changed = [path for path, old, new in after if new is not old]
    assert changed == ["model.layers.0.mlp.up_proj"]


def test_other_processors_keep_all_classes(monkeypatch):
    monkeypatch.setattr(frozen_linear, "onednn_is_quicker", lambda: False)
    model = llama()
    before = classes_of(model)
    speed_up_frozen_layers_(model)
    assert classes_of(model) == before


def test_a_base_that_a_recipe_loads_has_them(tiny_llama_dir, tmp_path, products):
    from lorakit.models.pretrained import load_model

    model = load_model(
        lorakit.models.pretrained.auto_model(lorakit.TaskType.CAUSAL_LM),
        str(tiny_llama_dir),
        seed=0,
        has_head=False,
        dtype="float32",
    )
    assert FrozenLinear in classes_of(model)
    file = tmp_path / "model.pt"
    torch.save(model, file)
    again = torch.load(file, weights_only=False)
    assert classes_of(again) == classes_of(model)
    saved, weights = again.state_dict(), model.state_dict()
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)
    with torch.no_grad():  # its products read other addresses, by which MKL chooses instructions
        torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    assert products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_both_layers_compute_their_product(dtype):
    x = torch.randn(2, 3, 8, dtype=dtype)
    for plain, new in ((nn.Linear(8, 6), FrozenLinear), (Conv1D(6, 8), FrozenConv1D)):
        plain = plain.to(dtype).requires_grad_(False)
        expected = plain(x)
        plain.__class__ = new
        torch.testing.assert_close(plain(x), expected)


def test_plain_layers_come_back():
    model = gpt2()
    before = classes_of(model)
    speed_up_frozen_layers_(model)
    assert classes_of(model) != before
    restore_plain_layers_(model)
    assert classes_of(model) == before


def test_a_loaded_base_can_be_quantized():
    pytest.importorskip("bitsandbytes")
    model, plain = llama(hidden_size=64), llama(hidden_size=64)
    speed_up_frozen_layers_(model)
    for each in (model, plain):
        lorakit.quantize_model(each, lorakit.QuantizationConfig(bits=4))
    assert classes_of(model) == classes_of(plain)
