"""Subclasses of nn.Linear: those that compute the same are adapted, others are left alone."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.falcon.modeling_falcon import FalconLinear

from lorakit import (
    LoraConfig,
    add_adapter,
    disable_adapters,
    load_adapter,
    merge_and_unload,
    save_adapter,
    unload,
)
from lorakit.errors import TargetError
from lorakit.layers import LoraLinear
from lorakit.layers.kinds.linear_subclass import runs_as_linear
from tiny_models import assert_untouched, randomize_, snapshot
from tolerances import largest_error


class Inherited(nn.Linear):
    """Has only another way to be made."""

    def __init__(self, in_features, out_features, bias=True, init="zero"):
        super().__init__(in_features, out_features, bias)
        self.init = init


class Spelled(nn.Linear):
    def forward(self, x):
        return torch.einsum("...i,oi->...o", x, self.weight) + (
            0 if self.bias is None else self.bias
        )


class Flagged(nn.Linear):
    """As Idefics' layer: the flag says whether it is a plain one."""

    def __init__(self, in_features, out_features, bias=True, more=0):
        super().__init__(in_features, out_features, bias)
        self.more = more

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + self.more


SAME = [FalconLinear, Inherited, Spelled, Flagged]


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Clamped(nn.Linear):
    def forward(self, x):
        return super().forward(x.clamp(-1000, 1000))


class Narrow(nn.Linear):
    """Computes in float32."""

    def forward(self, x):
        return F.linear(x.float(), self.weight.float(), self.bias.float()).to(x.dtype)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x) if self.training else x)


class Tuple(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Raising(nn.Linear):
    def forward(self, x):
        raise KeyError("no such thing")


class More(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.more = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return super().forward(x) + self.more


class Buffered(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, x):
        return super().forward(x) + self.shift


class Holding(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.table = {"shift": 0.0}

    def forward(self, x):
        return super().forward(x) + self.table["shift"]


OTHERS = [Scaled, Clamped, Narrow, Noisy, Tuple, Raising, More, Buffered, Holding]


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("bias", [True, False])
def test_which_are_the_same(kind, bias):
    assert runs_as_linear(kind(4, 4, bias))


@pytest.mark.parametrize("kind", OTHERS)
def test_which_are_not(kind):
    module = kind(4, 4, True)
    before = torch.random.get_rng_state()
    assert not runs_as_linear(module)
    assert torch.equal(torch.random.get_rng_state(), before)
    model = nn.ModuleDict({"proj": kind(4, 4, True), "other": nn.Linear(4, 4)})
    said = f"Cannot adapt proj: {kind.__name__} is a subclass with its own forward"
    with pytest.raises(TargetError, match=said):
        add_adapter(model, LoraConfig(r=2, target_modules=["proj", "other"]))
    assert ("proj", f"{kind.__name__} is a subclass with its own forward") in add_adapter(
        model, LoraConfig(r=2)
    ).skipped


def test_a_flag_decides():
    assert not runs_as_linear(Flagged(4, 4, more=1))
    assert runs_as_linear(Flagged(4, 4, more=0))


@pytest.mark.parametrize("kind", SAME)
def test_they_are_adapted_and_restored(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(4, 6), kind(6, 4)).eval()
    x = torch.randn(3, 4)
    base, before = model(x), snapshot(model)
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear"))
    layer = model[0]
    assert isinstance(layer, kind) and isinstance(layer, LoraLinear)
    assert largest_error(model(x), base) < 1e-6
    randomize_(model)
    delta = layer.updates["default"].delta_weight()
    expected = F.linear(x, layer.weight + delta, layer.bias)
    assert largest_error(layer(x), expected) < 1e-5
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(made[0]) is type(layer) and torch.equal(made(x), model(x))
    with disable_adapters(model):
        assert torch.equal(model(x), base)
    acting = model(x)
    acting.sum().backward()
    assert layer.updates["default"].lora_A.grad.count_nonzero()
    unload(model)
    assert_untouched(model, before)
    assert type(model[0]) is kind and torch.equal(model(x), base)


def falcon():
    import transformers

    torch.manual_seed(0)
    config = transformers.FalconConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.FalconForCausalLM(config).eval()


def test_falcon(tmp_path):
    model = falcon()
    ids = torch.arange(6)[None]
    injection = add_adapter(model, LoraConfig(r=2, target_modules="all-linear"))
    assert {row["kind"] for row in injection.rows()} == {"FalconLinear"}
    randomize_(model)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    save_adapter(model, tmp_path)
    again = falcon()
    load_adapter(again, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, expected)
        merged = merge_and_unload(again)
        assert largest_error(merged(input_ids=ids).logits, expected) < 1e-5
    assert not any(isinstance(module, LoraLinear) for module in merged.modules())
