"""DoRA on layers: results do not depend on what runs them, and norms are kept only while right."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from lorakit.layers import LoraConv1D, LoraEmbedding, LoraLinear, LowRankUpdate, row_norms
from lorakit.layers.variants.dora import Dora
from lorakit.ops import apply_keep_mask, linear_group
from lorakit.ops.reference import dora_linear_reference
from tiny_models import assert_untouched, snapshot
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

KINDS = {"Linear": LoraLinear, "Conv1D": LoraConv1D}


def plain(kind):
    torch.manual_seed(0)
    if kind == "Linear":
        return nn.Linear(6, 4)
    layer = Conv1D(4, 6)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def dora_update(inside=6, out=4, p=0.0, seed=1):
    torch.manual_seed(seed)
    return LowRankUpdate(
        torch.randn(2, inside), torch.randn(out, 2), 0.5, p, magnitude=torch.rand(out) + 0.5
    )


def adapt(layer, adapted_class, **updates):
    adapted = adapted_class.adapt_in_place(layer)
    for name, update in updates.items():
        adapted.updates[name] = update
    adapted.activate(tuple(updates))
    return adapted


def reference(layer, x, update, dropped_x=None):
    W0 = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
    return dora_linear_reference(
        x, W0, layer.bias, update.lora_A, update.lora_B, 0.5, update.magnitude, dropped_x
    )


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def counted(monkeypatch):
    """How often norms with an update are computed."""
    calls = []
    original = row_norms.row_norms
    monkeypatch.setattr(row_norms, "row_norms", lambda *args: calls.append(1) or original(*args))
    return calls


@pytest.mark.parametrize("with_gradients", [True, False])
def test_the_output_is_the_reference_s(kind, with_gradients):
    layer = adapt(plain(kind), KINDS[kind], a=dora_update())
    x = torch.randn(2, 3, 6)
    with torch.set_grad_enabled(with_gradients):
        got = layer(x)
    expected = reference(layer, x, layer.updates["a"])
    assert largest_error(got, expected) <= TOLERANCE[torch.float32]


def test_a_magnitude_of_the_weight_s_own_norms_changes_nothing(kind):
    layer = plain(kind)
    x = torch.randn(3, 6)
    expected = layer(x)
    adapt(layer, KINDS[kind], a=dora_update())
    update = layer.updates["a"]
    with torch.no_grad():
        update.lora_B.zero_()
        update.magnitude.copy_(Dora.initial(layer, update))
    assert largest_error(layer(x), expected) <= TOLERANCE[torch.float32]


def test_merging_is_the_sum_of_what_each_changes_and_comes_off(kind):
    layer = plain(kind)
    before = snapshot(layer)
    plain_update = LowRankUpdate(torch.randn(1, 6), torch.randn(4, 1), 2.0)
    adapt(layer, KINDS[kind], a=dora_update(), b=plain_update, c=dora_update(seed=3))
    x = torch.randn(3, 6)
    expected = layer(x)
    layer.merge()
    assert not layer.acting_updates()
    assert largest_error(layer(x), expected) <= TOLERANCE[torch.float32]
    layer.unmerge()
    assert largest_error(layer(x), expected) == 0
    layer.restore_in_place()
    assert_untouched(layer, before)


def test_embeddings_scale_the_directions_of_a_vector():
    torch.manual_seed(0)
    layer = nn.Embedding(7, 4, padding_idx=0)
    adapt(layer, LoraEmbedding, a=dora_update(7, 4), b=dora_update(7, 4, seed=2))
    ids = torch.tensor([[1, 5, 0], [6, 6, 2]])
    W0 = layer.weight.t()
    expected = layer.weight.t().clone()
    for update in layer.updates.values():
        W1 = W0 + update.delta_weight()
        expected = expected + update.magnitude[:, None] * W1 / W1.norm(dim=1, keepdim=True) - W0
    assert largest_error(layer(ids), expected.t()[ids]) <= TOLERANCE[torch.float32]
    layer.merge()
    assert largest_error(layer(ids), expected.t()[ids]) <= TOLERANCE[torch.float32]


def test_norms_with_an_update_are_kept_in_evaluation_until_something_changes(kind, counted):
    layer = adapt(plain(kind), KINDS[kind], a=dora_update())
    update, x = layer.updates["a"], torch.randn(3, 6)

    def output():
        with torch.no_grad():
            got = layer(x)
        expected = reference(layer, x, update)
        assert largest_error(got, expected) <= TOLERANCE[torch.float32]
        return len(counted)

    assert [output(), output()] == [1, 1]
    changes = [
        lambda: update.lora_A.mul_(2),
        lambda: update.lora_B.add_(1),
        lambda: layer.weight.mul_(3),
        lambda: setattr(layer, "weight", nn.Parameter(layer.weight * 2, requires_grad=False)),
        lambda: setattr(update, "scaling", 0.5),  # the same again changes nothing
        lambda: setattr(layer.weight, "data", layer.weight.data + 1),
        # torch does not count what is written through .data
        lambda: update.lora_A.data.mul_(1.5),
        lambda: update.lora_B.data[1].add_(1),
        lambda: layer.weight.data[0].add_(1),
    ]
    seen = []
    for change in changes:
        with torch.no_grad():
            change()
        seen.append(output())
    assert seen == [2, 3, 4, 5, 5, 6, 7, 8, 9]
    layer(x).sum().backward()  # a step may change factors in a way that torch does not count
    update.lora_B.data.add_(1)
    output()


def test_training_sees_a_weight_that_was_written_through_data(kind):
    layer = adapt(plain(kind), KINDS[kind], a=dora_update())
    x = torch.randn(3, 6)
    for _ in range(2):
        got = layer(x)
        expected = reference(layer, x, layer.updates["a"])
        assert largest_error(got, expected) <= TOLERANCE[torch.float32]
        layer.weight.data[0].mul_(3)


def test_sums_of_a_half_precision_weight_do_not_overflow():
    weight = torch.full((1000, 100), 100.0, dtype=torch.float16)
    state = row_norms._state(weight)
    weight.data[0].mul_(2)
    assert row_norms._state(weight) != state


def test_inference_mode_leaves_nothing_behind_that_training_cannot_use(kind):
    layer = adapt(plain(kind), KINDS[kind], a=dora_update())
    x = torch.randn(3, 6)
    with torch.inference_mode():
        expected = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
    layer(x).sum().backward()
    assert layer.updates["a"].magnitude.grad is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_norms_of_their_own(kind, copied):
    layer = adapt(plain(kind), KINDS[kind], a=dora_update())
    x = torch.randn(3, 6)
    expected = layer(x)
    twin = copied(layer)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        twin.weight.mul_(2)
    assert largest_error(twin(x), reference(twin, x, twin.updates["a"])) < 1e-5
    assert torch.equal(layer(x), expected)


def test_dropout_repeats_under_checkpointing(kind):
    layer = adapt(plain(kind), KINDS[kind], a=dora_update(p=0.5)).train()
    gradients = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(0)
        x = torch.linspace(-1, 1, 18).view(3, 6).requires_grad_()
        layer.zero_grad()
        run(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad.clone() for p in layer.updates.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert largest_error(one, other) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_dropout_acts_on_the_low_rank_path_alone(kind, names, monkeypatch):
    plain_update = LowRankUpdate(torch.randn(1, 6), torch.randn(4, 1), 2.0, 0.5)
    every = {"a": dora_update(p=0.5), "b": dora_update(p=0.2, seed=2), "c": plain_update}
    layer = adapt(plain(kind), KINDS[kind], **{name: every[name] for name in names}).train()
    seed = torch.tensor(5)
    monkeypatch.setattr("lorakit.layers.updates.low_rank_update.draw_seed", lambda: seed)
    x = torch.linspace(-1, 1, 18).view(3, 6).requires_grad_()
    leaves = [x, *layer.updates.parameters()]
    W0 = layer.weight if kind == "Linear" else layer.weight.t()
    base = expected = x @ W0.t() + layer.bias
    for name in names:
        update = every[name]
        dropped = apply_keep_mask(x, update.drop_probability, seed)
        if name == "c":
            expected = expected + 2 * (dropped @ update.lora_A.t()) @ update.lora_B.t()
        else:
            expected = expected + reference(layer, x, update, dropped) - base
    got = layer(x)
    assert largest_error(got, expected) <= TOLERANCE[torch.float32]
    weights = torch.randn_like(got)
    mine = torch.autograd.grad((got * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for one, other in zip(mine, theirs, strict=True):
        assert largest_error(one, other) <= GRADIENT_TOLERANCE[torch.float32]


@pytest.mark.parametrize("names", ["a", "ab"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_one_product_with_the_base_s_weight_is_enough(kind, names, p, monkeypatch):
    updates = {name: dora_update(p=p, seed=ord(name)) for name in names}
    layer = adapt(plain(kind), KINDS[kind], **updates).train()
    calls = []
    original = linear_group._base_product
    monkeypatch.setattr(
        linear_group, "_base_product", lambda *args: calls.append(1) or original(*args)
    )
    layer(torch.randn(3, 6))
    assert len(calls) == 1


def test_dropout_of_a_layer_s_input_is_zero_on_average(kind):
    layer = adapt(plain(kind), KINDS[kind], a=dora_update(p=0.3)).train()
    x = torch.randn(6)
    torch.manual_seed(0)
    mean = layer(x.expand(40000, 6)).mean(0)
    assert largest_error(mean, layer.eval()(x)) < 0.03


@pytest.mark.parametrize("names", ["a", "ab"])
def test_dropout_on_a_quantized_layer(names, monkeypatch):
    pytest.importorskip("bitsandbytes")
    from lorakit.layers.bitsandbytes_storage import quantized_weight
    from lorakit.layers.kinds.quantized import LoraLinear4bit
    from lorakit.ops.quantized import dense_copy
    from tiny_models.quantized import FOUR, quantized

    layer = quantized(nn.Sequential(nn.Linear(64, 32)), **FOUR)[0]
    updates = {name: dora_update(64, 32, p=0.4, seed=ord(name)) for name in names}
    adapt(layer, LoraLinear4bit, **updates).train()
    seed = torch.tensor(5)
    monkeypatch.setattr("lorakit.layers.updates.low_rank_update.draw_seed", lambda: seed)
    x = torch.randn(3, 64)
    W0, dropped = dense_copy(quantized_weight(layer), torch.float32), apply_keep_mask(x, 0.4, seed)
    base = expected = x @ W0.t() + layer.bias
    for u in updates.values():
        operands = (W0, layer.bias, u.lora_A, u.lora_B, 0.5, u.magnitude)
        expected = expected + dora_linear_reference(x, *operands, dropped) - base
    assert largest_error(layer(x), expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("names", ["a", "ab"])
def test_dropout_in_half_precision(kind, names, monkeypatch):
    updates = {name: dora_update(p=0.4, seed=ord(name)) for name in names}
    layer = adapt(plain(kind).to(torch.bfloat16), KINDS[kind], **updates).train()
    seed = torch.tensor(5)
    monkeypatch.setattr("lorakit.layers.updates.low_rank_update.draw_seed", lambda: seed)
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    W0 = (layer.weight if kind == "Linear" else layer.weight.t()).double()
    bias, dropped = layer.bias.double(), apply_keep_mask(x, 0.4, seed).double()
    base = expected = x.double() @ W0.t() + bias
    for u in updates.values():
        operands = (W0, bias, u.lora_A.double(), u.lora_B.double(), 0.5, u.magnitude.double())
        expected = expected + dora_linear_reference(x.double(), *operands, dropped) - base
    got = layer(x)
    assert got.dtype == torch.bfloat16
    assert largest_error(got, expected) <= len(names) * TOLERANCE[torch.bfloat16]
