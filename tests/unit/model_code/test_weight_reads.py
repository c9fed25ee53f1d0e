"""Weights that a model's code reads, and layers that it calls, found in its source."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorakit import LoraConfig, add_adapter
from lorakit.errors import TargetError
from tiny_models import assert_untouched, snapshot


class Linears(nn.Module):
    """Layers that the classes below read or call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.flag = False
        self.options = {}


def by_weight(x, weight):
    return x @ weight.t()


def by_layer(x, layer):
    return F.linear(x, layer.weight, layer.bias)


def calls_it(x, layer):
    return layer(x) * layer.weight.sum()


class Multiplied(Linears):
    def forward(self, x):
        return self.proj.weight @ self.other(x)


class ToFunction(Linears):
    def forward(self, x):
        return by_weight(self.other(x), self.proj.weight)


class WholeToFunction(Linears):
    def forward(self, x):
        return by_layer(self.other(x), layer=self.proj)


class Alias(Linears):
    def forward(self, x):
        layer = self.proj
        weight = layer.weight.to(x.dtype)
        return self.other(x) @ weight


class InMethod(Linears):
    def forward(self, x):
        return self.mixed(self.other(x), self.proj)

    def mixed(self, x, layer):
        return F.linear(x, layer.weight) if x.ndim == 2 else x @ layer.weight


class ByName(Linears):
    def forward(self, x):
        return self.other(x) @ getattr(self, "proj").weight  # noqa: B009


class Probing(Linears):
    """Asks the layer whether it has a bias, which is no call."""

    def forward(self, x):
        bias = self.proj.bias if hasattr(self.proj, "bias") and self.proj is not None else None
        return F.linear(self.other(x), self.proj.weight, bias)


class OnABranchItNeverTakes(Linears):
    """As FalconMamba, which calls the layer where its base is quantized."""

    def forward(self, x):
        if hasattr(self, "quantized") or (self.flag and x.ndim == 2) or "on" in self.options:
            return self.other(self.proj(x))
        return self.other(x) @ self.proj.weight


class ElsewhereOnly(Linears):
    """Calls it in a method that nothing reaches."""

    def forward(self, x):
        return self.other(x) @ self.proj.weight

    def unreached(self, x):
        return self.proj(x)


class Decorated(Linears):
    @torch.no_grad()
    def forward(self, x):
        return self.other(x) @ self.proj.weight


class Super(Multiplied):
    def forward(self, x):
        return super().forward(x) + 1


class Outside(nn.Module):
    """Reads the weight of a layer inside a child, which does not call it either."""

    def __init__(self):
        super().__init__()
        self.inner = Linears()

    def forward(self, x):
        return self.inner.other(x) @ self.inner.proj.weight


READ = [Multiplied, ToFunction, WholeToFunction, Alias, InMethod, ByName, Probing]
READ += [OnABranchItNeverTakes, ElsewhereOnly, Decorated, Super, Outside]


@pytest.mark.parametrize("kind", READ)
def test_linear_layers_whose_weight_acts_without_a_call(kind):
    model = nn.ModuleDict({"mixer": kind()})
    before = snapshot(model)
    path = "mixer.inner.proj" if kind is Outside else "mixer.proj"
    said = f"Cannot adapt {path}: {kind.__name__} reads its weight instead of calling"
    with pytest.raises(TargetError, match=said):
        add_adapter(model, LoraConfig(r=2, target_modules=["proj", "other"]))
    assert_untouched(model, before)
    injection = add_adapter(model, LoraConfig(r=2, target_modules="all-linear"))
    assert path not in {match.path for match in injection.matches}
    assert path.replace("proj", "other") in {match.path for match in injection.matches}
    reason = f"{kind.__name__} reads its weight instead of calling the layer"
    assert (path, reason) in injection.skipped
    assert f"Left out, {reason}: {path}" in str(injection)


class InALoop(Linears):
    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = F.linear(x, layer.weight) * number
        return x + sum(F.linear(x, one.weight) for one in self.layers)


def test_weights_of_listed_layers():
    model = nn.ModuleDict({"mixer": InALoop()})
    with pytest.raises(TargetError, match=r"Cannot adapt mixer.layers.0: InALoop reads"):
        add_adapter(model, LoraConfig(r=2, target_modules=["0", "1"]))
    injection = add_adapter(model, LoraConfig(r=2))
    assert [match.path for match in injection.matches] == ["mixer.proj", "mixer.other"]


class CalledToo(Linears):
    """A penalty on a weight, or a norm of it."""

    def forward(self, x):
        return self.proj(x) + self.proj.weight.norm()


class CalledInTraining(Linears):
    def forward(self, x):
        return self.proj(x) if self.training else x @ self.proj.weight


class CalledForSomeInputs(Linears):
    def forward(self, x, y=None):
        if y is None:
            return x @ self.proj.weight
        return self.proj(y)


class CalledByFunction(Linears):
    def forward(self, x):
        return calls_it(x, self.proj)


class Described(Linears):
    """Asks for a dtype, as T5 does, and a device."""

    def forward(self, x):
        if isinstance(self.proj.weight, torch.Tensor) and x.dtype != self.proj.weight.dtype:
            x = x.to(self.proj.weight.dtype)
        return self.forwarded(x.to(self.proj.weight.device))

    def forwarded(self, x):
        return nn.Sequential(self.proj)(x)


class Initialized(Linears):
    """Reads the weight where no forward does."""

    def __init__(self):
        super().__init__()
        nn.init.uniform_(self.proj.weight)
        self.reset()

    def reset(self):
        self.proj.weight.data = self.proj.weight * 2

    def forward(self, x):
        return self.other(x)


class CalledFromTheList(Linears):
    def forward(self, x):
        x = x * self.layers[0].weight.sum()
        for layer in self.layers:
            x = layer(x)
        return self.proj(x)


CALLED = [CalledToo, CalledInTraining, CalledForSomeInputs, CalledByFunction, Described]


@pytest.mark.parametrize("kind", [*CALLED, Initialized, CalledFromTheList])
def test_linear_layers_that_may_be_called(kind):
    model = nn.ModuleDict({"mixer": kind()})
    targets = ["proj", "other", "0", "1"]
    assert len(add_adapter(model, LoraConfig(r=2, target_modules=targets)).matches) == 4
