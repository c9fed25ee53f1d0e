"""Linear and Conv1D: one arithmetic, two orientations of the stored weight."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.errors import ShapeError, TargetError
from lorakit.layers import LoraConv1D, LoraLinear, LowRankUpdate
from tiny_models import assert_untouched, snapshot
from tolerances import largest_error

KINDS = {"Linear": LoraLinear, "Conv1D": LoraConv1D}


def plain(kind, inside=6, out=4, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    if kind == "Linear":
        return nn.Linear(inside, out, bias=bias, dtype=dtype)
    layer = Conv1D(out, inside)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer.to(dtype)


def stored_as_out_in(layer):
    return layer.weight.t() if isinstance(layer, Conv1D) else layer.weight


def random_update(inside=6, out=4, r=2, scaling=0.5, p=0.0, bias=None, seed=1):
    torch.manual_seed(seed)
    return LowRankUpdate(torch.randn(r, inside), torch.randn(out, r), scaling, p, bias=bias)


def adapt(layer, kind, active=True, **updates):
    adapted = KINDS[kind].adapt_in_place(layer)
    for name, update in updates.items():
        adapted.updates[name] = update
    adapted.activate(tuple(updates) if active else ())
    return adapted


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_swap_keeps_the_object_and_restore_leaves_no_trace(kind):
    layer = plain(kind)
    before = snapshot(layer)
    adapted = adapt(layer, kind, a=random_update())
    assert adapted is layer and type(layer) is KINDS[kind]
    assert isinstance(layer, nn.Linear if kind == "Linear" else Conv1D)
    assert list(layer.state_dict())[:2] == ["weight", "bias"]
    layer.restore_in_place()
    assert type(layer) is (nn.Linear if kind == "Linear" else Conv1D)
    assert_untouched(layer, before)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (0, 6)])
def test_forward_is_the_formula(kind, shape):
    layer = plain(kind)
    x = torch.randn(shape)
    expected = layer(x)
    update = random_update()
    adapt(layer, kind, a=update)
    expected = expected + 0.5 * (x @ update.lora_A.T) @ update.lora_B.T
    assert largest_error(layer(x), expected) < 1e-5


def test_no_active_update_is_the_base_bit_for_bit(kind):
    layer = plain(kind)
    x = torch.randn(3, 6)
    expected = layer(x)
    adapt(layer, kind, active=False, a=random_update())
    assert torch.equal(layer(x), expected)
    layer.activate(("not here",))
    assert torch.equal(layer(x), expected)


def test_an_active_bias_stands_in_for_the_base_s(kind):
    layer = plain(kind)
    x = torch.randn(3, 6)
    trained = torch.randn(4)
    update = random_update(bias=trained)
    base = layer(x) - layer.bias
    adapt(layer, kind, a=update)
    expected = base + trained + 0.5 * (x @ update.lora_A.T) @ update.lora_B.T
    assert largest_error(layer(x), expected) < 1e-5


def test_two_updates_add_up_in_any_order(kind):
    layer = plain(kind)
    x = torch.randn(3, 6)
    base = layer(x)
    adapt(layer, kind, a=random_update(seed=1), b=random_update(r=1, scaling=2.0, seed=2))
    both = layer(x)
    parts = []
    for name in ("a", "b"):
        layer.activate((name,))
        parts.append(layer(x) - base)
    assert largest_error(both, base + sum(parts)) < 1e-5
    layer.activate(("b", "a"))
    assert largest_error(layer(x), both) < 1e-6


def test_dropout_in_training_only(kind):
    layer = plain(kind)
    x = torch.randn(50, 6)
    adapt(layer, kind, a=random_update(p=0.5))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    torch.manual_seed(5)
    first = layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_deepcopy_is_independent(kind):
    layer = adapt(plain(kind), kind, a=random_update())
    x = torch.randn(3, 6)
    twin = copy.deepcopy(layer)
    assert type(twin) is type(layer)
    assert torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twin.updates["a"].lora_B.zero_()
    assert not torch.equal(twin(x), layer(x))


def test_wrong_width_raises_a_shape_error(kind):
    layer = adapt(plain(kind), kind, a=random_update())
    with pytest.raises(ShapeError, match=r"has shape \(3, 5\).*to be 6"):
        layer(torch.randn(3, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_merge_rounds_once_and_unmerge_gives_the_very_object_back(kind, dtype):
    layer = plain(kind, dtype=dtype)
    trained = torch.randn(4)
    updates = {"a": random_update(seed=1, bias=trained), "b": random_update(seed=2)}
    before = layer.weight, layer.bias
    bits = layer.weight.detach().clone()
    exact = stored_as_out_in(layer).detach().float()
    for update in updates.values():
        exact = exact + update.delta_weight()
    adapt(layer, kind, **updates)
    rounding = layer.merge()
    assert layer.is_merged and layer.weight.dtype == dtype
    assert torch.equal(stored_as_out_in(layer), exact.to(dtype))
    assert torch.equal(layer.bias, trained.to(dtype))
    assert rounding == (exact.to(dtype).float() - exact).abs().max().item()
    assert not layer.weight.requires_grad
    layer.unmerge()
    assert layer.weight is before[0] and layer.bias is before[1]
    assert torch.equal(layer.weight, bits)
    assert not layer.is_merged


def test_merged_forward_equals_the_adapter_s(kind):
    layer = adapt(plain(kind), kind, a=random_update(bias=torch.randn(4)))
    x = torch.randn(3, 6)
    expected = layer(x)
    layer.merge()
    assert largest_error(layer(x), expected) < 1e-5
    layer.unmerge()
    assert torch.equal(layer(x), expected)


def test_merging_nothing_changes_nothing(kind):
    layer = adapt(plain(kind), kind, active=False, a=random_update())
    weight = layer.weight
    assert layer.merge() == 0.0
    assert layer.weight is weight and not layer.is_merged


def test_a_forward_of_unknown_origin_is_refused_and_nothing_changes(kind):
    layer = plain(kind)
    layer.forward = lambda x: x
    before = snapshot(layer)
    with pytest.raises(TargetError) as caught:
        KINDS[kind].adapt_in_place(layer)
    assert str(caught.value) == (
        f"A {kind} cannot be adapted: the instance has its own forward, expected the one of "
        "its class. Remove that attribute before adding an adapter."
    )
    assert_untouched(layer, before)


def test_a_forward_that_is_the_class_s_own_is_no_obstacle(kind):
    # accelerate's remove_hook_from_module leaves exactly this behind.
    layer = plain(kind)
    layer.forward = layer.forward
    before = snapshot(layer)
    x = torch.randn(3, 6)
    base = layer(x)
    adapt(layer, kind, a=random_update())
    assert not torch.equal(layer(x), base)
    layer.restore_in_place()
    assert_untouched(layer, before)
    assert torch.equal(layer(x), base)


def test_factors_of_a_weight_stored_transposed():
    layer = Conv1D(4, 6)
    nn.init.normal_(layer.weight)
    assert LoraConv1D.factor_sizes(layer) == (6, 4)
    LoraConv1D.adapt_in_place(layer)
    assert layer.base_weight().shape == (4, 6)
    assert layer.orient(torch.zeros(4, 6)).shape == (6, 4)
    layer.updates["a"] = update = LowRankUpdate(torch.randn(2, 6), torch.randn(4, 2), 0.5)
    layer.activate(("a",))
    x = torch.randn(3, 6)
    expected = x @ (layer.weight + update.delta_weight().t()) + layer.bias
    assert largest_error(layer(x=x), expected) <= 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_update_the_product_is_of_the_quicker_library(kind, monkeypatch):
    layer = adapt(plain(kind), kind, active=False, a=random_update())
    shapes = []

    def product(x, W, bias):
        shapes.append(tuple(W.shape))
        return nn.functional.linear(x, W, bias)

    monkeypatch.setattr("lorakit.layers.kinds.linear.forward_product", product)
    x = torch.randn(3, 5, 6)
    assert largest_error(layer(x), plain(kind)(x)) < 1e-6
    assert shapes == [(4, 6)]
