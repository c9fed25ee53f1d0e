"""What decoding keeps from call to call gives what is computed afresh, whatever has changed."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from lorakit import LoraConfig, add_adapter, merge_adapters, set_adapter, unmerge_adapters
from lorakit.layers.executors import single
from lorakit.ops.native import cpu_kernels
from tiny_models import randomize_
from tolerances import TOLERANCE, largest_error

needs_kernels = pytest.mark.skipif(cpu_kernels.load() is None, reason="no compiled products")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10))
    for name, r in (("a", 2), ("b", 3)):
        add_adapter(model, LoraConfig(r=r, target_modules=["0"]), name)
    set_adapter(model, ["a"])
    return randomize_(model).eval()


def both(layer, x):
    """Return the output of the layer, and what its operands give."""
    with torch.no_grad():
        return layer(x), layer.compute(x, layer.operands(layer.acting_updates()))


def assert_same(layer, x):
    got, expected = both(layer, x)
    assert got.dtype == expected.dtype
    assert largest_error(got, expected) <= TOLERANCE[torch.float32]


X = torch.linspace(-1, 1, 36).view(3, 12)
CHANGES = {
    "values": lambda layer: layer.updates["a"].lora_A.mul_(2),
    "scaling": lambda layer: setattr(layer.updates["a"], "scaling", 0.1),
    "memory": lambda layer: setattr(
        layer.updates["a"].lora_B, "data", layer.updates["a"].lora_B.data + 1
    ),
    "a factor": lambda layer: setattr(
        layer.updates["a"], "lora_A", nn.Parameter(torch.ones(2, 12))
    ),
    "a factor, unseen": lambda layer: layer.updates["a"]._parameters.update(
        lora_A=nn.Parameter(torch.ones(2, 12))
    ),
    "the weight": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 2)),
    "both act": lambda layer: layer.activate(("a", "b")),
    "another acts": lambda layer: layer.activate(("b",)),
    "a hook": lambda layer: layer.updates["a"].register_forward_pre_hook(
        lambda update, _: update.lora_B.mul_(0)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(model, change):
    assert_same(model[0], X)
    with torch.no_grad():
        change(model[0])
    assert_same(model[0], X)


def test_functional_call(model):
    assert_same(model[0], X)
    key = "0.updates.a.lora_B"
    other = model.get_parameter(key).detach() + 1
    with torch.no_grad():
        before = model(X)
        got = torch.func.functional_call(model, {key: other}, (X,))
        assert torch.equal(model(X), before)
        model.get_parameter(key).copy_(other)
    assert largest_error(got, both(model[0], X)[1]) <= TOLERANCE[torch.float32]


def test_a_graph_has_the_products(model):
    with torch.no_grad():
        model(X)
        graph = make_fx(model)(X)
        assert largest_error(graph(2 * X), model(2 * X)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("shape", [(12,), (1, 12), (2, 3, 12), (0, 12), (200, 12)], ids=str)
def test_any_shape(model, shape):
    assert_same(model[0], torch.randn(shape))
    assert_same(model[0], torch.randn(*shape[:-1], 24)[..., ::2])


def test_dropout_acts_in_training_mode():
    model = nn.Sequential(nn.Linear(12, 10))
    add_adapter(model, LoraConfig(r=2, target_modules=["0"], lora_dropout=0.5))
    randomize_(model).eval()
    assert_same(model[0], X)
    model.train()
    with torch.no_grad():
        assert not torch.equal(model(X), model(X))


def test_autocast_and_merging(model):
    assert_same(model[0], X)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert model(X).dtype == torch.bfloat16
    before, _ = both(model[0], X)
    merge_adapters(model)
    with torch.no_grad():
        assert largest_error(model(X), before) <= TOLERANCE[torch.float32]
    unmerge_adapters(model)
    assert_same(model[0], X)


@needs_kernels
def test_a_second_call_describes_nothing_again(model, monkeypatch):
    layer = model[0]
    both(layer, X)
    monkeypatch.setattr(type(layer), "operands", None)
    with torch.no_grad():
        layer(X)


@needs_kernels
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_prepare_for_themselves(model, copied):
    assert_same(model[0], X)
    twin = copied(model)
    with torch.no_grad():
        twin[0].updates["a"].lora_B.mul_(3)
    assert_same(twin[0], X)
    assert not torch.equal(both(twin[0], X)[0], both(model[0], X)[0])


def test_half_precision():
    model = nn.Sequential(nn.Linear(12, 10)).bfloat16()
    add_adapter(model, LoraConfig(r=2, target_modules=["0"]))
    randomize_(model)
    got, expected = both(model[0], X.bfloat16())
    assert largest_error(got, expected) <= TOLERANCE[torch.bfloat16]


@needs_kernels
def test_only_calls_without_gradients_are_prepared(model, monkeypatch):
    monkeypatch.setattr(single, "PreparedUpdates", None)
    model(X).sum().backward()
    assert model[0].updates["a"].lora_B.grad is not None
