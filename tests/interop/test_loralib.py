"""loralib's layers and lorakit's compute the same from each other's state dicts."""

import loralib
import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter, lora_state_dict
from lorakit.adapters import Adapter, from_loralib
from tiny_models import randomize_
from tolerances import largest_error

TOLERANCE = 1e-5
R, ALPHA = 3, 5


class Net(nn.Module):
    """An embedding, a linear layer and one with three parts, of loralib's layers or plain ones."""

    def __init__(self, lora=False, parts=(True, False, True)):
        super().__init__()
        options = {"r": R, "lora_alpha": ALPHA} if lora else {}
        torch.manual_seed(0)
        self.embed = (loralib if lora else nn).Embedding(12, 8, **options)
        self.linear = (loralib if lora else nn).Linear(8, 10, **options)
        if lora:
            self.qkv = loralib.MergedLinear(10, 18, enable_lora=list(parts), **options)
        else:
            self.qkv = nn.Linear(10, 18)

    def forward(self, ids):
        return self.qkv(torch.tanh(self.linear(self.embed(ids))))


IDS = torch.arange(12).reshape(3, 4)
NAMES = ("embed", "linear")


def theirs_and_base(parts=(True, False, True)):
    """Return a loralib network with random factors, and a plain one with its base weights."""
    theirs = Net(lora=True, parts=parts)
    loralib.mark_only_lora_as_trainable(theirs)
    randomize_(theirs)
    base = Net()
    base.load_state_dict({k: v for k, v in theirs.state_dict().items() if "lora_" not in k})
    return theirs, base


@pytest.mark.parametrize("parts", [(True, False, True), (False, True, False), (True, True, True)])
@pytest.mark.parametrize("whole", [False, True], ids=["factors", "whole"])
def test_what_loralib_saved_is_read(whole, parts):
    theirs, base = theirs_and_base(parts)
    tensors = theirs.state_dict() if whole else loralib.lora_state_dict(theirs)
    named = () if whole else ("embed",)
    adapter = from_loralib(tensors, ALPHA, enable_lora={"qkv": parts}, embeddings=named)
    plain = base(IDS)
    add_adapter(base, adapter)
    expected = theirs(IDS)
    assert largest_error(base(IDS), expected) < TOLERANCE
    assert largest_error(plain, expected) > 0.05


@pytest.mark.parametrize("bias", ["none", "lora_only"])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_saved_here_loralib_loads(bias, rslora):
    ours = Net()
    config = LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules=list(NAMES), bias=bias, use_rslora=rslora
    )
    add_adapter(ours, config)
    randomize_(ours)
    theirs = Net(lora=True)
    plain = Net().state_dict()
    missing, unexpected = theirs.load_state_dict(plain, strict=False)
    assert not unexpected
    missing, unexpected = theirs.load_state_dict(lora_state_dict(ours, bias), strict=False)
    assert not unexpected and not any("lora" in m and "qkv" not in m for m in missing)
    with torch.no_grad():
        theirs.qkv.lora_B.zero_()
    assert largest_error(theirs(IDS), ours(IDS)) < TOLERANCE
    assert largest_error(Net()(IDS), ours(IDS)) > 0.05


def test_both_name_the_same_tensors():
    theirs, base = theirs_and_base()
    add_adapter(base, LoraConfig(r=R, target_modules=list(NAMES), bias="lora_only"))
    for bias in ("none", "lora_only"):
        state = lora_state_dict(base, bias)
        expected = loralib.lora_state_dict(theirs, bias)
        assert state.keys() == {key for key in expected if not key.startswith("qkv")}
        for key, tensor in state.items():
            assert tensor.shape == expected[key].shape
    assert isinstance(Adapter.from_model(base), Adapter)


@pytest.mark.parametrize("parts", [(True, False, True), (True, True, True)])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_linear_both_ways(parts, rslora):
    theirs, ours = theirs_and_base(parts)
    config = LoraConfig(
        r=R,
        lora_alpha=ALPHA,
        target_modules=[*NAMES, "qkv"],
        enable_lora={"qkv": parts},
        use_rslora=rslora,
    )
    add_adapter(ours, config)
    randomize_(ours, seed=4)
    tensors = lora_state_dict(ours)
    expected = loralib.lora_state_dict(theirs)
    assert {key: t.shape for key, t in tensors.items()} == {
        key: t.shape for key, t in expected.items()
    }
    assert largest_error(theirs(IDS), ours(IDS)) > 0.05
    theirs.load_state_dict(tensors, strict=False)
    assert largest_error(theirs(IDS), ours(IDS)) < TOLERANCE
    if rslora:
        return
    # The same parameters, so the same gradients.
    for model in (theirs, ours):
        model(IDS).square().sum().backward()
    update = ours.qkv.updates["default"]
    assert largest_error(update.lora_A.grad, theirs.qkv.lora_A.grad) < TOLERANCE
    assert largest_error(update.lora_B.grad, theirs.qkv.lora_B.grad) < TOLERANCE


@pytest.mark.parametrize("whole", [False, True], ids=["factors", "whole"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2}], ids=str)
def test_what_a_convolution_of_loralib_saved_is_read(options, whole):
    torch.manual_seed(0)
    theirs = nn.Sequential(loralib.Conv2d(4, 8, 3, r=R, lora_alpha=ALPHA, **options))
    loralib.mark_only_lora_as_trainable(theirs)
    randomize_(theirs)
    base = nn.Sequential(nn.Conv2d(4, 8, 3, **options))
    weights = {
        k.replace(".conv", ""): t for k, t in theirs.state_dict().items() if "lora_" not in k
    }
    base.load_state_dict(weights)
    tensors = theirs.state_dict() if whole else loralib.lora_state_dict(theirs)
    shapes = None if whole else {"0": theirs[0].conv.weight.shape}
    x = torch.randn(2, 4, 7, 7)
    plain = base(x)
    add_adapter(base, from_loralib(tensors, ALPHA, convolutions=shapes))
    assert largest_error(base(x), theirs(x)) < TOLERANCE
    assert largest_error(plain, theirs(x)) > 0.05
