import copy
import pickle

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter
from lorakit.layers import (
    LoraLinear,
    LowRankUpdate,
    ReplacedModule,
    copy_with_own,
    full_copy,
    plain_class_of,
    replace_in_place,
    restore_in_place,
)
from lorakit.layers.replaced import base_parts
from tiny_models import assert_untouched, gpt2, randomize_, snapshot
from tiny_models.quantized import SETTINGS, dense_twin, quantized
from tolerances import largest_error

X = torch.ones(2, 4)


class Head(nn.Module):
    """Two layers, as RoBERTa's classification head has them."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.out_proj = nn.Linear(4, 2)

    def forward(self, x, scale=None):
        h = self.out_proj(torch.tanh(self.dense(x)))
        return h if scale is None else h * scale


def head(dtype=torch.float32):
    torch.manual_seed(0)
    return Head().to(dtype)


def with_copy(module, name="a", change=1.0):
    trained = full_copy(module, {})
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(change)
    replaced = replace_in_place(module)
    replaced.trained_copies[name] = trained
    return trained


def test_replace_keeps_the_object_and_restore_leaves_no_trace():
    module = head()
    before = snapshot(module)
    with_copy(module)
    assert isinstance(module, ReplacedModule) and isinstance(module, Head)
    assert plain_class_of(module) is Head
    restore_in_place(module)
    assert_untouched(module, before)


def test_the_active_copy_acts_with_all_arguments():
    module = head()
    base = module(X)
    trained = with_copy(module)
    assert torch.equal(module(X), base)
    module.active_copy = "a"
    assert torch.equal(module(X, scale=2.0), trained(X, scale=2.0))
    assert not torch.equal(module(X), base)


def test_replacing_twice_is_replacing_once():
    module = head()
    assert replace_in_place(module) is replace_in_place(module)
    assert type(module).__mro__.count(ReplacedModule) == 1


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_deepcopy_and_pickle(copier):
    module = head()
    with_copy(module)
    module.active_copy = "a"
    twin = copier(module)
    assert type(twin) is type(module)
    assert torch.equal(twin(X), module(X))
    restore_in_place(twin)
    assert type(twin) is Head
    assert isinstance(module, ReplacedModule)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_that_shares_its_weight_still_does_after_copying(copier):
    module = nn.Linear(4, 2)
    trained = copy_with_own(module, ["bias"])
    replace_in_place(module).trained_copies["a"] = trained
    twin = copier(module)
    assert twin.trained_copies["a"].weight is twin.weight
    assert twin.trained_copies["a"].bias is not twin.bias


def test_a_float32_copy_under_a_half_precision_base_is_cast_at_its_borders():
    module = head(torch.bfloat16)
    trained = full_copy(module, {}).float()
    replace_in_place(module).trained_copies["a"] = trained
    module.active_copy = "a"
    seen = []
    trained.register_forward_hook(lambda m, args, out: seen.append((args[0].dtype, out.dtype)))
    out = module(X.bfloat16(), scale=torch.tensor(2.0).bfloat16())
    assert out.dtype == torch.bfloat16
    assert seen == [(torch.float32, torch.float32)]


def test_a_full_copy_leaves_the_copies_of_others_behind():
    module = head()
    with_copy(module, "a")
    made = full_copy(module, {})
    assert type(made) is Head
    assert list(made._modules) == ["dense", "out_proj"]
    assert "active_copy" not in vars(made)


def test_hooks_of_the_base_run_once():
    module = head()
    calls = []
    module.register_forward_hook(lambda *_: calls.append("forward"))
    module.register_forward_pre_hook(lambda *_: calls.append("pre"))
    trained = with_copy(module)
    module.trained_copies["bias"] = copy_with_own(module, [])
    for name in ("a", "bias"):
        module.active_copy = name
        calls.clear()
        module(X)
        assert calls == ["pre", "forward"]
    handle = trained.register_forward_hook(lambda *_: calls.append("copy"))
    module.active_copy = None
    calls.clear()
    module(X)
    assert calls == ["pre", "forward"]
    handle.remove()


def adapted_and_replaced(first):
    """Return a linear layer that one adapter adapts and another trains in full."""
    layer = nn.Linear(4, 4)
    before = snapshot(layer)
    for step in (first, "replace" if first == "adapt" else "adapt"):
        if step == "replace":
            with_copy(layer)
        else:
            LoraLinear.adapt_in_place(layer).updates["x"] = LowRankUpdate(
                torch.ones(1, 4), torch.ones(4, 1), 1.0
            )
    return layer, before


@pytest.mark.parametrize("first", ["adapt", "replace"])
@pytest.mark.parametrize("out_first", ["adapt", "replace"])
def test_a_module_may_be_adapted_and_replaced_in_any_order(first, out_first):
    layer, before = adapted_and_replaced(first)
    base = nn.functional.linear(X, layer.weight, layer.bias)
    assert isinstance(layer, LoraLinear) and isinstance(layer, ReplacedModule)
    layer.active_copy = "a"
    layer.activate(())
    assert torch.equal(layer(X), layer.trained_copies["a"](X))
    layer.active_copy = None
    layer.activate(("x",))
    assert torch.allclose(layer(X), base + 4)
    twin = pickle.loads(pickle.dumps(layer))
    assert type(twin) is type(layer) and torch.equal(twin(X), layer(X))
    if out_first == "adapt":
        layer.restore_in_place()
        assert type(layer).__mro__[1:3] == (ReplacedModule, nn.Linear)
        layer.active_copy = "a"
        assert torch.equal(layer(X), layer.trained_copies["a"](X))
        restore_in_place(layer)
    else:
        restore_in_place(layer)
        assert type(layer) is LoraLinear
        assert torch.allclose(layer(X), base + 4)
        layer.restore_in_place()
    assert_untouched(layer, before)


def test_base_parts_are_those_of_the_module_before_adapters():
    module = head()
    before = [*module.modules()]
    with_copy(module, "a")
    LoraLinear.adapt_in_place(module.dense).updates["a"] = nn.Linear(1, 1)
    assert [*base_parts(module)] == before
    shared = nn.Sequential(module, module)
    assert [*base_parts(shared)] == [shared, *before]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_trained_bias_beside_a_quantized_weight_leaves_its_codes_alone(settings):
    model = quantized(gpt2().eval(), **settings)
    twin = dense_twin(model)
    # The other layer has no update, so that each of its biases has a copy.
    config = LoraConfig(r=2, bias="all", layers_to_transform=[1], target_modules=["c_attn"])
    for one in (model, twin):
        add_adapter(one, config)
        randomize_(one)
    ids = torch.arange(12).view(2, 6)
    found = model(ids).logits
    assert largest_error(found, twin(ids).logits) < 1e-5
    found.sum().backward()
    bias = model.transformer.h[0].attn.c_attn.trained_copies["default"].bias
    assert bias.grad.abs().max() > 0
