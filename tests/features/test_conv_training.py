"""Convolutions in training and beside other things: gradients, dtypes, checkpointing, 4 bits."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorakit import (
    Adapter,
    LoraConfig,
    adapter_rows,
    add_adapter,
    hotswap_adapter,
    mark_only_lora_as_trainable,
    merge_adapters,
    set_adapter,
    unmerge_adapters,
)
from lorakit.adapters import extract, resize_adapter
from lorakit.errors import AdapterFileError, AdapterMismatchError, AdapterStateError, TargetError
from tiny_models import assert_untouched, randomize_, snapshot
from tiny_models.quantized import quantized
from tolerances import TOLERANCE, largest_error

LAYERS = {
    "1d": (nn.Conv1d, {"kernel_size": 3, "stride": 2, "padding": 1}, (7,)),
    "2d": (nn.Conv2d, {"kernel_size": (2, 3), "dilation": (1, 2), "padding": 2}, (4, 5)),
    "2d, reflect": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, (4, 5)),
    "2d, groups": (nn.Conv2d, {"kernel_size": 2, "groups": 2}, (4, 5)),
    "3d": (nn.Conv3d, {"kernel_size": 2, "padding": "same", "dilation": 2}, (3, 3, 3)),
}
FEATURES = {
    "plain": {},
    "dropout": {"lora_dropout": 0.4},
    "dora": {"use_dora": True},
    "dora, dropout": {"use_dora": True, "lora_dropout": 0.4},
    "bias": {"bias": "lora_only"},
}
CASES = [(a, b) for a in LAYERS for b in FEATURES]


def net(layer="2d", dtype=torch.float32):
    kind, options, _ = LAYERS[layer]
    torch.manual_seed(0)
    return nn.Sequential(kind(4, 6, **options)).to(dtype)


def adapted(layer="2d", dtype=torch.float32, seed=7, model=None, name="default", **options):
    model = net(layer, dtype) if model is None else model
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["0"]}
    add_adapter(model, LoraConfig(**settings | options), name)
    return randomize_(model, seed=seed)


def inputs(layer="2d", dtype=torch.float32, rows=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, *LAYERS[layer][2], dtype=dtype, generator=generator)


@pytest.mark.parametrize(("layer", "feature"), CASES)
def test_gradients_are_those_of_the_outputs(layer, feature):
    model = adapted(layer, torch.float64, **FEATURES[feature])
    wanted = [p for p in model.parameters() if p.requires_grad]
    if "dora" in feature:
        # The lengths of rows are constants for the gradient, so only the rest can be checked.
        wanted = [model[0].updates["default"].magnitude]
    names = [name for name, p in model.named_parameters() if any(p is one for one in wanted)]

    def output(x, *values):
        torch.manual_seed(2)  # of the mask
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, given, (x,))

    x = inputs(layer, torch.float64, rows=2).requires_grad_()
    assert torch.autograd.gradcheck(output, (x, *wanted), fast_mode=True)


@pytest.mark.parametrize("feature", FEATURES)
def test_checkpointing_changes_no_gradient(feature):
    results = []
    for again in (False, True):
        model, x = adapted(**FEATURES[feature]), inputs().requires_grad_()
        torch.manual_seed(3)
        out = checkpoint(model, x, use_reentrant=False) if again else model(x)
        out.square().sum().backward()
        trained = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([out, x.grad, *trained])
    assert len(results[0]) > 3
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("feature", FEATURES)
def test_training_learns_and_leaves_the_base_alone(feature):
    model = adapted(**FEATURES[feature])
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(8):
        torch.manual_seed(4)
        loss = (model(inputs()) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
    after = [p for p in model.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for name, tensor in net().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
@pytest.mark.parametrize("dora", [False, True])
def test_bases_in_16_bits_have_updates_in_32(dtype, bias, dora):
    model = adapted(dtype=dtype, bias=bias, use_dora=dora)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    x = inputs(dtype=dtype)
    out = model(x)
    assert out.dtype == dtype
    out.float().square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    wide = adapted(bias=bias, use_dora=dora)
    wide.load_state_dict(model.state_dict())
    assert largest_error(out, wide(x.float())) < TOLERANCE[dtype]


@pytest.mark.parametrize("feature", FEATURES)
def test_autocast(feature):
    model = adapted(**FEATURES[feature])
    torch.manual_seed(2)
    expected = model(inputs())
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(inputs())
    assert got.dtype == torch.bfloat16
    assert largest_error(got, expected) < 2 * TOLERANCE[torch.bfloat16]
    got.float().square().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.slow(reason="compiles a layer five times")
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("feature", FEATURES)
def test_it_is_compiled_as_one_graph(feature):
    model = adapted(**FEATURES[feature])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    expected = model(inputs())
    torch.manual_seed(3)
    # A compiled graph may take other kernels, which add up in another order.
    assert largest_error(compiled(inputs()), expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("feature", ["plain", "dora", "dropout"])
def test_channels_may_be_last_in_memory(feature):
    model = adapted(**FEATURES[feature])
    torch.manual_seed(3)
    expected = model(inputs())
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.manual_seed(3)
    got = last(inputs().to(memory_format=torch.channels_last))
    assert largest_error(got, expected) < TOLERANCE[torch.float32]
    last.eval()
    expected, stride, before = model.eval()(inputs()), last[0].weight.stride(), last[0].weight
    merge_adapters(last)
    assert largest_error(last(inputs()), expected) < TOLERANCE[torch.float32]
    unmerge_adapters(last)
    assert last[0].weight is before and before.stride() == stride


@pytest.mark.parametrize("second", ["plain", "dora", "bias"])
def test_several_of_which_one_scales_add_what_each_adds(second):
    model = adapted(dtype=torch.float64, use_dora=True)
    adapted(model=model, seed=3, name="second", **FEATURES[second])
    x = inputs(dtype=torch.float64)
    base, changes = net(dtype=torch.float64)(x), []
    for name in ("default", "second"):
        set_adapter(model, name)
        changes.append(model(x) - base)
    set_adapter(model, ["default", "second"])
    together = model(x)
    torch.testing.assert_close(together, base + sum(changes))
    merge_adapters(model)
    torch.testing.assert_close(model(x), together)


def test_rows_may_drop_beside_magnitudes():
    model = adapted(use_dora=True, lora_dropout=0.3)
    torch.manual_seed(2)
    with adapter_rows(model, ["default", None, "default"]):
        got = model(inputs())
    assert torch.equal(got[1], net()(inputs())[1])
    assert not torch.equal(got[0], model.eval()(inputs())[0])


def test_biases_alone_can_be_marked():
    model = adapted(bias="all")
    mark_only_lora_as_trainable(model, "lora_only")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"0.updates.default.{name}" for name in ("lora_A", "lora_B", "bias")]


class TestQuantizedBase:
    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(36, 64))

    def x(self):
        generator = torch.Generator().manual_seed(1)
        return torch.randn(3, 4, 8, 3, generator=generator)

    def test_convolutions_stay_dense_and_are_adapted(self):
        model = quantized(self.model())
        assert model[0].weight.dtype == torch.float32 and model[2].weight.dtype == torch.uint8
        x = self.x()
        base = model(x)
        add_adapter(model, LoraConfig(r=2, target_modules=["0", "2"]))
        assert largest_error(model(x), base) < TOLERANCE[torch.float32]
        randomize_(model)
        expected = model(x)
        assert largest_error(expected, base) > 0.05
        before = model[0].weight.clone()
        merge_adapters(model, quantized_base="dequantize")
        assert largest_error(model(x), expected) < 10 * TOLERANCE[torch.float32]
        unmerge_adapters(model)
        assert torch.equal(model[0].weight, before) and torch.equal(model(x), expected)


class TestRefused:
    def test_a_weight_that_a_hook_makes_cannot_take_a_merge(self):
        model = net()
        with pytest.warns(FutureWarning):
            model[0] = nn.utils.weight_norm(model[0])
        adapted(model=model)
        before, expected = snapshot(model), model(inputs())
        with pytest.raises(AdapterStateError, match="Cannot merge into 0: its weight is computed"):
            merge_adapters(model)
        assert_untouched(model, before)
        assert torch.equal(model(inputs()), expected)

    def test_subclasses_and_transposed_convolutions(self):
        class Doubled(nn.Conv2d):
            def forward(self, x):
                return 2 * super().forward(x)

        for layer in (Doubled(4, 6, 3), nn.LazyConv2d(6, 3)):
            with pytest.raises(TargetError, match="is a subclass with its own forward"):
                adapted(model=nn.Sequential(layer))
        with pytest.raises(TargetError, match="No module matched"):
            adapted(model=nn.Sequential(nn.ConvTranspose2d(4, 6, 3)))

    def test_slices_of_a_convolution(self):
        with pytest.raises(TargetError, match="0: it is a Conv2d, expected a linear layer"):
            adapted(enable_lora={"0": [True, False]})

    def test_groups_in_operations_on_adapters(self):
        adapter = Adapter.from_model(adapted("2d, groups"))
        with pytest.raises(AdapterFileError, match="or use the adapter as it is"):
            resize_adapter(adapter, 2)
        base, tuned = net("2d, groups"), net("2d, groups")
        with pytest.raises(AdapterMismatchError, match="Cannot extract 0: got 2 groups"):
            extract(base, tuned, LoraConfig(r=2, target_modules=["0"]))


class TestExchanged:
    def test_groups_take_the_weights_of_another(self):
        model, other = adapted("2d, groups"), adapted("2d, groups", seed=2)
        x = inputs("2d, groups")
        assert largest_error(model(x), other(x)) > 0.05
        hotswap_adapter(model, Adapter.from_model(other))
        assert torch.equal(model(x), other(x))

    def test_groups_of_another_rank_are_refused(self):
        model, small = adapted("2d, groups", r=4), adapted("2d, groups")
        before = snapshot(model)
        with pytest.raises(
            AdapterMismatchError, match="0 has rank 2 in all its blocks, expected 4"
        ):
            hotswap_adapter(model, Adapter.from_model(small))
        assert_untouched(model, before)

    def test_another_kernel_is_refused(self):
        model = adapted("2d")
        torch.manual_seed(0)
        other = nn.Sequential(nn.Conv2d(8, 6, (1, 3)))  # as many columns in lora_A
        adapted(model=other)
        before = snapshot(model)
        with pytest.raises(AdapterMismatchError, match="0 has another kernel"):
            hotswap_adapter(model, Adapter.from_model(other))
        assert_untouched(model, before)
