"""Updates of a weight that its module's forward reads: those of the sum, and no trace after."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorakit import (
    LoraConfig,
    adapter_rows,
    add_adapter,
    disable_adapters,
    merge_adapters,
    unload,
    unmerge_adapters,
)
from lorakit.errors import AdapterStateError
from lorakit.layers.kinds.read_weight import LoraReadWeight
from tiny_models import assert_untouched, randomize_, snapshot
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error


class Router(nn.Module):
    """Scores of four experts, with a count that a forward changes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.bias = nn.Parameter(torch.randn(4))
        self.calls = nn.Buffer(torch.zeros(()))

    def forward(self, x, *, scale=1.0):
        self.calls += 1
        return scale * F.linear(x, self.weight, self.bias).softmax(-1)


def routed(**options):
    torch.manual_seed(0)
    model = nn.ModuleDict({"gate": Router(), "up": nn.Linear(6, 6)})
    given = {"target_modules": [], "target_parameters": ["gate.weight"]} | options
    add_adapter(model, LoraConfig(r=2, lora_alpha=6, **given))
    return randomize_(model)


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def expected(model, bias=None):
    gate = model["gate"]
    update = gate.updates["default"]
    weight = gate.weight + update.scaling * update.lora_B @ update.lora_A
    return F.linear(X, weight, gate.bias if bias is None else bias).softmax(-1)


def test_the_forward_runs_on_the_sum_and_keeps_its_arguments_and_buffers():
    model = routed()
    assert isinstance(model["gate"], LoraReadWeight)
    assert (
        largest_error(model["gate"](X, scale=2.0), 2 * expected(model)) < TOLERANCE[torch.float32]
    )
    assert model["gate"].calls == 1


def test_gradients_are_those_of_the_sum():
    model = routed()
    update = model["gate"].updates["default"]
    model["gate"](X).square().sum().backward()
    found = update.lora_A.grad, update.lora_B.grad
    wanted = torch.autograd.grad(expected(model).square().sum(), [update.lora_A, update.lora_B])
    for got, want in zip(found, wanted, strict=True):
        assert largest_error(got, want) < GRADIENT_TOLERANCE[torch.float32]
    assert model["gate"].weight.grad is None


def test_a_trained_bias_takes_the_place_of_the_base_s():
    model = routed(bias="lora_only")
    bias = model["gate"].updates["default"].bias
    assert largest_error(model["gate"](X), expected(model, bias)) < TOLERANCE[torch.float32]


def test_switched_off_merged_and_taken_out():
    torch.manual_seed(0)
    model = nn.ModuleDict({"gate": Router(), "up": nn.Linear(6, 6)})
    plain = model["gate"](X)
    before = snapshot(model)
    add_adapter(model, LoraConfig(r=2, target_modules=[], target_parameters=["gate.weight"]))
    randomize_(model)
    acting = model["gate"](X)
    with disable_adapters(model):
        assert torch.equal(model["gate"](X), plain)
    merge_adapters(model)
    assert largest_error(model["gate"](X), acting) < TOLERANCE[torch.float32]
    unmerge_adapters(model)
    assert torch.equal(model["gate"](X), acting)
    unload(model)
    model["gate"].calls.fill_(1)
    assert type(model["gate"]) is Router
    assert_untouched(model, before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(copied):
    model = routed()
    again = copied(model)
    assert torch.equal(again["gate"](X), model["gate"](X))
    assert again["gate"] is not model["gate"]


def test_rows_with_adapters_of_their_own_are_refused():
    model = routed(target_modules=["up"])
    refused = pytest.raises(AdapterStateError, match="through a Router: 'default' updates its wei")
    with adapter_rows(model, ["default", None, None, None, None]), refused:
        model["gate"](X)
