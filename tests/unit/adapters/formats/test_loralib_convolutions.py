"""loralib's ConvLoRA: its product is found again, in factors a convolution can have."""

import pytest
import torch
from torch import nn

from lorakit import add_adapter, merge_adapters
from lorakit.adapters import adapter_state_dict, from_loralib, load_adapter_state_dict
from lorakit.errors import AdapterFileError
from tolerances import largest_error

R, ALPHA = 2, 5
SHAPES = {
    "a kernel of 3": ((8, 4, 3, 3), 1),
    "few outputs": ((3, 4, 3, 3), 1),
    "many outputs": ((40, 4, 2, 2), 1),
    "pointwise, 1d": ((8, 4, 1), 1),
    "pointwise, 3d": ((8, 4, 1, 1, 1), 1),
    "groups": ((8, 2, 3, 3), 2),
    "depthwise": ((4, 1, 3, 3), 4),
}


def state_dict(shape, groups=1, r=R, zero=False):
    """Return factors as ConvLoRA has them for a weight of this shape, and what they add to it."""
    generator = torch.Generator().manual_seed(5)
    k = shape[-1]
    A = torch.randn(r * k, shape[1] * groups * k, generator=generator)
    B = torch.randn(shape[0] // groups * k, r * k, generator=generator) * (0 if zero else 1)
    delta = (B.double() @ A.double()).view(shape) * (ALPHA / r)
    return {"m.lora_A": A, "m.lora_B": B}, delta


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("whole", [False, True])
def test_the_product_is_that_of_the_factors(case, whole):
    shape, groups = SHAPES[case]
    tensors, delta = state_dict(shape, groups)
    if whole:
        tensors["m.conv.weight"] = torch.ones(shape)
        adapter = from_loralib(tensors, ALPHA)
    else:
        adapter = from_loralib(tensors, ALPHA, convolutions={"m": shape})
    A, B = adapter.factors["m"]
    rows = shape[0] // groups
    assert A.shape[0] == B.shape[1] <= groups * min(rows, R * shape[-1] ** 2)
    columns = adapter.delta_weight("m").view(groups, rows, groups, -1)
    in_group = torch.stack([columns[g, :, g] for g in range(groups)])
    assert largest_error(in_group.reshape(shape), delta) < 1e-6
    columns = columns.clone()
    for g in range(groups):
        columns[g, :, g] = 0
    assert not columns.any()  # no group reads the channels of another


@pytest.mark.parametrize("case", ["a kernel of 3", "pointwise, 3d", "depthwise"])
def test_a_layer_adds_it(case):
    shape, groups = SHAPES[case]
    tensors, delta = state_dict(shape, groups)
    kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("m", kind(shape[1] * groups, shape[0], shape[-1], groups=groups))
    x = torch.randn(2, shape[1] * groups, *[5] * (len(shape) - 2))
    weights = {"m.weight": model.m.weight.detach() + delta.float()}
    expected = torch.func.functional_call(model, weights, (x,))
    assert largest_error(model(x), expected) > 0.1
    add_adapter(model, from_loralib(tensors, ALPHA, convolutions={"m": shape}))
    assert largest_error(model(x), expected) < 1e-5
    load_adapter_state_dict(model, adapter_state_dict(model))
    assert largest_error(model(x), expected) < 1e-5
    if groups == 1:
        merge_adapters(model)
        assert largest_error(model(x), expected) < 1e-5


def test_an_update_that_is_zero_can_be_trained():
    shape, _ = SHAPES["a kernel of 3"]
    adapter = from_loralib(state_dict(shape, zero=True)[0], ALPHA, convolutions={"m": shape})
    assert not adapter.delta_weight("m").any()
    model = nn.Sequential()
    model.add_module("m", nn.Conv2d(4, 8, 3))
    add_adapter(model, adapter)
    model(torch.ones(1, 4, 5, 5)).square().sum().backward()
    assert model.m.updates["default"].lora_B.grad.abs().max() > 0


def test_biases_come_along_without_the_weights_of_the_base():
    shape, _ = SHAPES["a kernel of 3"]
    tensors = state_dict(shape)[0] | {"m.conv.bias": torch.ones(8)}
    made = from_loralib(tensors, ALPHA, convolutions={"m": shape})
    assert made.config.bias == "lora_only" and list(made.replaced) == ["m.bias"]
    whole = from_loralib(tensors | {"m.conv.weight": torch.ones(shape)}, ALPHA)
    assert whole.config.bias == "none" and not whole.replaced


@pytest.mark.parametrize(
    ("shape", "given", "said"),
    [
        ((8, 4, 3, 3), {"m.lora_A": torch.ones(6, 13)}, "do not fit a ConvLoRA"),
        ((8, 4, 3, 3), {"m.lora_B": torch.ones(8, 6)}, "do not fit a ConvLoRA"),
        ((8, 4, 3, 3), {"m.lora_B": torch.ones(24, 9)}, "do not fit a ConvLoRA"),
        ((8, 4, 3, 2), {}, "not a convolution's with a cubic kernel"),
        ((8, 4, 3, 3), {"m.lora_A": torch.ones(6)}, "not two matrices"),
        ((8, 4), {}, "not a convolution's with a cubic kernel"),
        ((8, 4, 3), {}, "loralib itself cannot run such a layer"),
    ],
)
def test_what_is_none_is_refused_by_name(shape, given, said):
    tensors = state_dict((8, 4, 3, 3))[0] | given
    with pytest.raises(AdapterFileError) as caught:
        from_loralib(tensors, ALPHA, convolutions={"m": shape}, where="x.pt")
    assert said in str(caught.value) and "Cannot read x.pt" in str(caught.value)


def test_a_path_that_is_not_there():
    with pytest.raises(AdapterFileError, match="there is no n, which convolutions names"):
        from_loralib(state_dict((8, 4, 1, 1))[0], ALPHA, convolutions={"n": (8, 4, 1, 1)})
