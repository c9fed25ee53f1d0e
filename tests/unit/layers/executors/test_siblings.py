"""Layers on one activation: the first one called computes for the others, and nobody notices."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter, delete_adapter, set_adapter, unload
from tiny_models import (
    assert_same_gradients,
    assert_untouched,
    bert,
    distilbert,
    gradients,
    llama,
    snapshot,
    t5,
    tokens,
)
from tiny_models.siblings import NAMES, Attention, adapted, step_, ungrouped
from tolerances import TOLERANCE, largest_error


@pytest.mark.parametrize(
    ("build", "counts"),
    [
        (llama, [3, 1, 2, 1] * 2),  # q k v, o, gate up, down; a layer on its own is not grouped
        (bert, [3] * 2),
        (distilbert, [3] * 2),
        (t5, [3] * 2 + [3, 2] * 2),
    ],
)
def test_results_and_gradients_are_those_without_groups(build, counts, group_sizes):
    targets = {bert: ["query", "key", "value"], distilbert: ["q_lin", "k_lin", "v_lin"]}
    options = {t5: {"target_modules": ["q", "k", "v"]}}.get(build, {})
    options |= {"target_modules": targets[build]} if build in targets else {}
    model = adapted(build(), **options)
    got = gradients(model)
    assert [count for count in group_sizes if count > 1] == [count for count in counts if count > 1]
    assert_same_gradients(got, gradients(ungrouped(model)))


def identity(p=0.5, **options):
    """Layers that give drop(x) itself, each with its own p if several are given."""
    model = adapted(Attention(), r=8, lora_alpha=8, lora_dropout=0.5, **options).train()
    ps = (p,) * 3 if isinstance(p, float) else p
    with torch.no_grad():
        for name, ours in zip(NAMES, ps, strict=True):
            layer = getattr(model, name)
            layer.updates["default"].drop_probability = ours
            for parameter in layer.parameters():
                parameter.copy_(torch.eye(8)) if parameter.ndim == 2 else parameter.zero_()
            layer.weight.zero_()
    return model


def test_layers_on_one_activation_share_their_mask():
    model = identity()
    x = torch.ones(50, 8)
    q, k, v = (getattr(model, name)(x) for name in NAMES)
    assert torch.equal(q, k) and torch.equal(q, v)
    assert 0.35 < (q == 0).double().mean() < 0.65
    assert not torch.equal(model.q_proj(x), q)  # and draw a new one in the next pass
    torch.manual_seed(3)
    first = model(x)
    torch.manual_seed(3)
    assert torch.equal(model(x), first)


def test_of_several_probabilities_each_keeps_its_own_under_one_seed():
    model = identity((0.2, 0.5, 0.0))
    x = torch.ones(500, 8)
    q, k, v = (getattr(model, name)(x) != 0 for name in NAMES)
    assert 0.75 < q.double().mean() < 0.85 and 0.45 < k.double().mean() < 0.55 and v.all()
    assert torch.equal(q & k, k)  # one lane decides for both


def another_weight_(model, x):
    """Put another weight in the place of one that was changed as often."""
    weight = nn.Parameter(torch.ones(8, 8), requires_grad=False)
    while weight._version < model.k_proj.weight._version:
        weight.mul_(1)
    model.k_proj.weight = weight


CHANGES = {
    "x": lambda model, x: x.add_(1),
    "W0": lambda model, x: model.k_proj.weight.mul_(2),
    "bias": lambda model, x: model.k_proj.bias.add_(1),
    "A": lambda model, x: model.k_proj.updates["default"].lora_A.mul_(2),
    "B": lambda model, x: model.k_proj.updates["default"].lora_B.mul_(2),
    "an optimizer step": lambda model, x: step_(model),
    "another weight": another_weight_,
    "scaling": lambda model, x: setattr(model.k_proj.updates["default"], "scaling", 3.0),
    "set_adapter": lambda model, x: set_adapter(model, "other"),
    "two adapters": lambda model, x: set_adapter(model, ["default", "other"]),
    "a trained bias": lambda model, x: model.k_proj.updates["default"].register_parameter(
        "bias", nn.Parameter(torch.ones(8))
    ),
    "frozen factors": lambda model, x: model.k_proj.updates["default"].requires_grad_(False),
    "x wants a gradient": lambda model, x: x.requires_grad_(),
}


def alone(layer, x):
    """Return what a layer computes without its group."""
    group, layer.siblings = layer.siblings, None
    layer.choose_executor()
    out = layer(x)
    layer.siblings = group
    layer.choose_executor()
    return out


def are_same(one, other):
    """Whether two results differ in rounding alone, as sums of other sizes may on some CPUs."""
    return largest_error(one, other) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_result_is_handed_out_after_a_change(change, group_sizes):
    model = adapted(Attention())
    add_adapter(model, LoraConfig(r=2, target_modules=NAMES, init_lora_weights=False), "other")
    set_adapter(model, "default")
    x = torch.randn(4, 8)
    model.q_proj(x)
    with torch.no_grad():
        change(model, x)
    got = model.k_proj(x)
    assert group_sizes == [3, 2]  # k computes again, together with v
    assert are_same(model.v_proj(x), alone(model.v_proj, x)) and group_sizes == [3, 2]
    expected = alone(model.k_proj, x)
    assert are_same(got, expected)
    leaves = [p for p in (x, *model.k_proj.parameters()) if p.requires_grad]
    if leaves:
        pairs = zip(*(torch.autograd.grad(h.sum(), leaves) for h in (got, expected)), strict=True)
        assert all(are_same(one, other) for one, other in pairs)


MODES = {
    "no_grad": torch.no_grad,
    "grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", dtype=torch.float16),
}


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_result_is_handed_out_in_another_mode(first, second, dropout, group_sizes):
    model = adapted(Attention(), lora_dropout=dropout).train()
    x = torch.randn(4, 8)
    with MODES[first]():
        model.q_proj(x)
    with MODES[second]():
        got, expected = model.k_proj(x), alone(model.k_proj, x)
    # Without gradients there is nothing to share but a mask.
    shares = [mode for mode in MODES if dropout or mode not in ("no_grad", "inference_mode")]
    assert group_sizes == [3] * (first in shares) + [2] * (second in shares and first != second)
    assert dropout or torch.equal(got, expected)
    assert got.dtype == expected.dtype
    assert got.requires_grad == expected.requires_grad
    assert got.is_inference() == expected.is_inference()


@pytest.mark.parametrize("training", [True, False])
def test_no_result_is_handed_out_after_train_or_eval(training):
    model = identity().train(training)
    x = torch.ones(50, 8)
    model.q_proj(x)
    model.train(not training)
    assert (model.k_proj(x) == 0).any() == (not training)


@pytest.mark.parametrize("other", [torch.clone, lambda x: x[:], lambda x: x + 1])
def test_no_result_is_handed_out_for_another_tensor(other, group_sizes):
    model = adapted(Attention())
    x = torch.randn(4, 8)
    y = other(x)
    model.q_proj(x)
    assert torch.equal(model.k_proj(y), alone(model.k_proj, y))
    assert group_sizes == [3, 2]


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_groups_of_their_own(copier, group_sizes):
    model = adapted(llama())
    expected = model(**tokens(model)).logits
    attention = model.model.layers[0].self_attn
    attention.q_proj(torch.randn(2, 16))  # results wait while the copy is made
    twin = copier(model)
    group_sizes.clear()
    assert torch.equal(twin(**tokens(twin)).logits, expected)
    assert 3 in group_sizes and 2 in group_sizes
    ours = twin.model.layers[0].self_attn
    assert ours.q_proj.siblings.members == [getattr(ours, name) for name in NAMES]
    assert ours.q_proj.siblings is not attention.q_proj.siblings
    lone = copier(attention.q_proj)
    x = torch.randn(2, 16)
    assert torch.equal(lone(x), attention.q_proj(x))


def test_a_shallow_copy_neither_takes_nor_spoils_results(group_sizes):
    model = adapted(Attention())
    x = torch.randn(4, 8)
    model.q_proj(x)
    assert torch.equal(copy.copy(model.k_proj)(x), model.k_proj(x))
    model.v_proj(x)
    assert group_sizes == [3, 1]


def test_restoring_leaves_no_trace():
    for model in (llama(), Attention()):
        before = snapshot(model)
        adapted(model)
        gradients(model, torch.randn(4, 8)) if isinstance(model, Attention) else gradients(model)
        model.zero_grad()
        unload(model)
        assert_untouched(model, before)


def test_a_layer_that_is_restored_leaves_its_group(group_sizes):
    model = Attention()
    add_adapter(model, LoraConfig(r=2, target_modules=NAMES[:2]), "one")
    add_adapter(model, LoraConfig(r=2, target_modules=["v_proj"]), "two")
    set_adapter(model, ["one", "two"])
    model(torch.randn(4, 8))
    set_adapter(model, "one")
    delete_adapter(model, "two")
    assert model.q_proj.siblings.members == [model.q_proj, model.k_proj]
    model(torch.randn(4, 8))
    assert group_sizes == [3, 2]
