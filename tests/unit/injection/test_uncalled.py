"""Convolutions whose weight is read in place of calling them are refused; others are adapted."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorakit import Adapter, LoraConfig, add_adapter
from lorakit.errors import TargetError
from tiny_models import assert_untouched, snapshot


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(4, 4, 3)


class Calling(Mixer):
    """Calls its convolution, and reads of its weight what it is like."""

    def forward(self, x):
        return self.conv(x.to(self.conv.weight.dtype)) * self.conv.weight.size(0)


class CallingAtTimes(Mixer):
    """Also passes the weight on, which may be right, as for a penalty."""

    def forward(self, x):
        return self.conv(x) + self.conv.weight.square().sum()


class PassingOn(Mixer):
    """Hands the layer to something that calls it."""

    def forward(self, x):
        return nn.Sequential(self.conv)(x) + self.conv.weight.sum()


class Reading(Mixer):
    """Passes the weight on, as Mamba's mixers do."""

    def forward(self, x):
        return F.conv1d(x, self.conv.weight, self.conv.bias)


class Below(Reading):
    """Has its forward from another class."""


class Indexing(Mixer):
    """Calls the layer for a whole text and reads the weight for one token, as RecurrentGemma."""

    def forward(self, x):
        if x.shape[-1] == 3:
            return (x * self.conv.weight[:, 0, None]).sum(-1)
        return self.conv(x)


def model_with(kind):
    return nn.ModuleDict({"mixer": kind(), "head": nn.Linear(4, 4)})


CONFIG = LoraConfig(r=2, target_modules=["conv", "head"])


@pytest.mark.parametrize("kind", [Calling, CallingAtTimes, PassingOn])
def test_a_layer_that_is_called_is_adapted(kind):
    assert len(add_adapter(model_with(kind), CONFIG).matches) == 2


@pytest.mark.parametrize("kind", [Reading, Below, Indexing])
def test_a_layer_that_is_only_read_is_refused(kind):
    model = model_with(kind)
    before = snapshot(model)
    said = f"Cannot adapt mixer.conv: {kind.__name__} reads its weight where it would have to call"
    with pytest.raises(TargetError, match=said):
        add_adapter(model, CONFIG)
    called = model_with(Calling)
    add_adapter(called, CONFIG)
    with pytest.raises(TargetError, match=said):
        add_adapter(model, Adapter.from_model(called))
    assert_untouched(model, before)


def test_a_model_without_its_source():
    made = type("Made", (Mixer,), {"forward": lambda self, x: self.conv(x)})
    assert len(add_adapter(model_with(made), CONFIG).matches) == 2


def test_mamba():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 4, "state_size": 2, "time_step_rank": 2}
    model = MambaForCausalLM(MambaConfig(num_hidden_layers=1, **sizes))
    before = snapshot(model)
    with pytest.raises(TargetError, match=r"layers.0.mixer.conv1d: MambaMixer reads its weight"):
        add_adapter(model, LoraConfig(r=8, target_modules=["conv1d"]))
    assert_untouched(model, before)
    assert add_adapter(model, LoraConfig(r=2, target_modules=["in_proj"])).matches
