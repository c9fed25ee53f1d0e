"""LoRA on convolutions: the sum of two convolutions is one with the summed weight."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    adapter_rows,
    add_adapter,
    combine_adapters,
    count_parameters,
    disable_adapters,
    load_adapter,
    merge_adapters,
    save_adapter,
    set_adapter,
    unload,
    unmerge_adapters,
)
from lorakit.adapters import (
    adapter_state_dict,
    extract,
    load_adapter_state_dict,
    negated_adapter,
    portable_adapter,
    resize_adapter,
    to_loralib,
)
from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterStateError,
    ShapeError,
    TargetError,
)
from tiny_models import assert_untouched, randomize_, snapshot
from tolerances import MERGE_TOLERANCE, largest_error

CASES = {
    "1d": (nn.Conv1d, (3, 8, 3), {"padding": 1}, (3, 9)),
    "1d, strided": (nn.Conv1d, (3, 8, 4), {"stride": 2, "bias": False}, (3, 9)),
    "1d, same": (nn.Conv1d, (3, 8, 4), {"padding": "same", "dilation": 2}, (3, 9)),
    "2d": (nn.Conv2d, (3, 8, 3), {"padding": 1}, (3, 6, 7)),
    "2d, uneven": (nn.Conv2d, (3, 8, (2, 3)), {"stride": (2, 1), "padding": (0, 2)}, (3, 6, 7)),
    "2d, dilated": (nn.Conv2d, (3, 8, 3), {"dilation": 2, "padding": "valid"}, (3, 6, 7)),
    "2d, circular": (nn.Conv2d, (3, 8, 3), {"padding": 1, "padding_mode": "circular"}, (3, 6, 7)),
    "2d, reflect": (nn.Conv2d, (3, 8, 3), {"padding": 2, "padding_mode": "reflect"}, (3, 6, 7)),
    "2d, replicate": (
        nn.Conv2d,
        (3, 8, 3),
        {"padding": (1, 2), "padding_mode": "replicate", "dilation": (1, 2)},
        (3, 6, 7),
    ),
    "2d, pointwise": (nn.Conv2d, (3, 8, 1), {}, (3, 6, 7)),
    "3d": (nn.Conv3d, (2, 6, 3), {"padding": 1, "stride": (1, 2, 1)}, (2, 4, 5, 4)),
}
ROWS, R = 4, 2


def net(case="2d", dtype=torch.float64):
    kind, sizes, options, _ = CASES[case]
    torch.manual_seed(0)
    return nn.Sequential(kind(*sizes, **options)).to(dtype)


def adapted(case="2d", dtype=torch.float64, seed=7, name="default", model=None, **options):
    model = net(case, dtype) if model is None else model
    settings = {"r": R, "lora_alpha": 3, "target_modules": ["0"]}
    add_adapter(model, LoraConfig(**settings | options), name)
    return randomize_(model, seed=seed)


def inputs(case="2d", dtype=torch.float64, rows=ROWS):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *CASES[case][3], dtype=dtype, generator=generator)


def with_weight(case, weight):
    """Return what the plain layer gives with another weight."""
    plain = net(case)
    with torch.no_grad():
        plain[0].weight.copy_(weight)
    return plain(inputs(case))


@pytest.mark.parametrize("case", CASES)
def test_it_is_a_convolution_with_the_summed_weight(case):
    model = adapted(case)
    layer = model[0]
    update = layer.updates["default"]
    delta = (update.scaling * update.lora_B @ update.lora_A).view(layer.weight.shape)
    x = inputs(case).requires_grad_()
    plain = net(case)
    weights = {"0.weight": layer.weight.detach() + delta}
    expected = torch.func.functional_call(plain, weights, (x,))
    torch.testing.assert_close(model(x), expected)
    assert largest_error(model(x), plain(x)) > 0.05
    probe = torch.randn(expected.shape, dtype=x.dtype)
    wanted = [update.lora_A, update.lora_B, x]
    theirs = torch.autograd.grad((expected * probe).sum(), wanted)
    ours = torch.autograd.grad((model(x) * probe).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(model(x[0]), model(x)[0])  # a single one, without rows


def test_a_fresh_one_changes_nothing_and_unload_leaves_no_trace():
    model = net()
    before, outputs = snapshot(model), model(inputs())
    add_adapter(model, LoraConfig(r=R, target_modules=["0"]))
    assert torch.equal(model(inputs()), outputs)
    assert count_parameters(model).lora == R * (3 * 9 + 8)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(copied(inputs()), outputs)
    unload(model)
    assert_untouched(model, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["1d", "2d, dilated", "3d"])
@pytest.mark.parametrize("dora", [False, True])
def test_merged_and_back(case, dtype, dora):
    model = adapted(case, dtype, use_dora=dora)
    before = copy.deepcopy(model[0].weight)
    expected = model(inputs(case, dtype))
    merge_adapters(model)
    tolerance = 1e-12 if dtype == torch.float64 else 16 * MERGE_TOLERANCE[dtype]
    assert largest_error(model(inputs(case, dtype)), expected) < tolerance
    unmerge_adapters(model)
    assert torch.equal(model[0].weight, before)
    assert torch.equal(model(inputs(case, dtype)), expected)


@pytest.mark.parametrize("case", ["1d", "2d, uneven", "3d"])
def test_dora_scales_the_length_of_each_kernel(case):
    model = adapted(case, use_dora=True)
    layer, update = model[0], model[0].updates["default"]
    W = layer.weight.flatten(1) + update.delta_weight()
    W = W * (update.magnitude / W.norm(dim=1))[:, None]
    torch.testing.assert_close(model(inputs(case)), with_weight(case, W.view_as(layer.weight)))


def test_dropout_acts_in_training_and_is_repeated_in_backward():
    model = adapted(lora_dropout=0.5)
    x = inputs().requires_grad_()
    assert not torch.equal(model(x), model(x))
    state = torch.get_rng_state()
    first = torch.autograd.grad(model(x).square().sum(), x)[0]
    torch.set_rng_state(state)
    assert torch.equal(torch.autograd.grad(model(x).square().sum(), x)[0], first)
    torch.manual_seed(5)
    mean = torch.stack([model(x).detach() for _ in range(800)]).mean(0)
    assert largest_error(mean, model.eval()(x)) < 0.15
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"bias": "lora_only"}], ids=str)
def test_rows_with_adapters_of_their_own(options):
    model = adapted(**options)
    adapted(name="second", seed=3, model=model, r=3)
    names = ["second", None, "default", "second"]
    expected = []
    for row, name in zip(inputs(), names, strict=True):
        set_adapter(model, name)
        expected.append(model(row[None]))
    with adapter_rows(model, names):
        got = model(inputs())
    torch.testing.assert_close(got, torch.cat(expected))


def test_two_adapters_add_up():
    model = adapted()
    adapted(name="second", seed=3, model=model)
    outputs = {}
    for names in ("default", "second", ["default", "second"], None):
        set_adapter(model, names)
        outputs[str(names)] = model(inputs())
    both = outputs["default"] + outputs["second"] - outputs["None"]
    torch.testing.assert_close(outputs["['default', 'second']"], both)


@pytest.mark.parametrize("case", ["1d", "2d, uneven", "3d"])
@pytest.mark.parametrize("dora", [False, True])
def test_files_and_state_dicts_there_and_back(case, dora, tmp_path):
    model = adapted(case, use_dora=dora)
    save_adapter(model, tmp_path / "adapter")
    other = net(case)
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(other(inputs(case)), model(inputs(case)))
    again = adapted(case, seed=2, use_dora=dora)
    load_adapter_state_dict(again, adapter_state_dict(model))
    assert torch.equal(again(inputs(case)), model(inputs(case)))
    key = "base_model.model.0.lora_A.weight"
    kernel = model[0].kernel_size
    assert adapter_state_dict(model)[key].shape == (R, model[0].in_channels, *kernel)


def test_operations_on_the_value():
    model = adapted()
    adapted(name="second", seed=3, model=model)
    one, two = Adapter.from_model(model), Adapter.from_model(model, "second")
    combine_adapters(model, {"default": 0.7, "second": -0.4}, "both", method="cat")
    both = Adapter.from_model(model, "both")
    expected = 0.7 * one.delta_weight("0") - 0.4 * two.delta_weight("0")
    assert largest_error(both.delta_weight("0"), expected) < 1e-12
    larger = resize_adapter(both, 4).adapter
    assert largest_error(larger.delta_weight("0"), expected) < 1e-6
    assert largest_error(negated_adapter(one).delta_weight("0"), -one.delta_weight("0")) == 0
    other = net()
    add_adapter(other, both)
    set_adapter(model, "both")
    torch.testing.assert_close(other(inputs()), model(inputs()))


def test_extracted_from_a_fine_tune():
    model = adapted()
    expected = model(inputs())
    base, tuned = net(), net()
    with torch.no_grad():
        tuned[0].weight += model[0].updates["default"].delta_weight().view_as(tuned[0].weight)
    found = extract(base, tuned, LoraConfig(r=R, target_modules=["0"]))
    assert found.kept["0"] == pytest.approx(1.0)
    add_adapter(base, found.adapter)
    assert largest_error(base(inputs()), expected) < 1e-5


class TestGroups:
    def model(self, seed=7, name="default", **options):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2)).double()
        settings = {"r": 4, "lora_alpha": 3, "target_modules": ["0"]}
        add_adapter(plain, LoraConfig(**settings | options), name)
        return randomize_(plain, seed=seed)

    def inputs(self):
        generator = torch.Generator().manual_seed(1)
        return torch.randn(ROWS, 4, 5, 5, dtype=torch.float64, generator=generator)

    def test_each_group_of_outputs_reads_its_part_of_the_rank(self):
        model, x = self.model(), self.inputs()
        layer, update = model[0], model[0].updates["default"]
        assert (update.lora_A.shape, update.lora_B.shape) == ((4, 36), (8, 2))
        with disable_adapters(model):
            base = model(x)
        u = nn.functional.conv2d(x, update.lora_A.view(4, 4, 3, 3), padding=1)
        up = nn.functional.conv2d(u, update.lora_B.view(8, 2, 1, 1), groups=layer.groups)
        torch.testing.assert_close(model(x), base + 3 / 4 * up)

    def test_files(self, tmp_path):
        model, x = self.model(), self.inputs()
        save_adapter(model, tmp_path / "adapter")
        other = self.model(seed=1, name="other")
        load_adapter(other, tmp_path / "adapter", "default")
        torch.testing.assert_close(other(x), model(x))
        load_adapter_state_dict(other, adapter_state_dict(self.model(seed=4)))
        torch.testing.assert_close(other(x), self.model(seed=4)(x))

    def test_merging_is_refused_and_nothing_changes(self):
        model = self.model()
        before = snapshot(model)
        with pytest.raises(AdapterStateError, match="Cannot merge into 0: it has groups=2"):
            merge_adapters(model)
        assert_untouched(model, before)

    def test_operations_on_the_value_are_refused(self):
        adapter = Adapter.from_model(self.model())
        with pytest.raises(AdapterFileError, match="2 groups of channels at 0"):
            resize_adapter(adapter, 2)

    def test_a_rank_that_the_groups_do_not_divide(self):
        with pytest.raises(ShapeError, match="got r=3, expected a multiple of its 2 groups"):
            self.model(r=3)

    @pytest.mark.parametrize("rows", [False, True], ids=["adapter", "adapter_rows"])
    def test_dora_has_the_rows_of_the_dense_convolution(self, rows):
        model = self.model(use_dora=True)
        layer = model[0]
        update = layer.updates["default"]
        W0 = layer.weight.new_zeros(layer.out_channels, layer.in_channels, *layer.kernel_size)
        out, inner = layer.out_channels // 2, layer.in_channels // 2
        W0[:out, :inner], W0[out:, inner:] = layer.weight[:out], layer.weight[out:]
        A, B = update.operand_factors()
        summed = W0.flatten(1) + update.scaling * B @ A
        directed = summed * (update.magnitude / summed.norm(dim=1))[:, None]
        x = torch.randn(2, layer.in_channels, 5, 6, dtype=layer.weight.dtype)
        dense = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, dtype=layer.weight.dtype,
        )  # fmt: skip
        dense.weight = nn.Parameter(directed.view_as(W0))
        dense.bias = layer.bias
        with adapter_rows(model, ["default"] * 2) if rows else nullcontext():
            assert torch.allclose(layer(x), dense(x), atol=1e-10)

    def test_a_start_for_a_whole_matrix(self):
        with pytest.raises(TargetError, match="slices of 0 with init_lora_weights='orthogonal'"):
            self.model(init_lora_weights="orthogonal")


class TestRefused:
    def test_a_file_for_another_kernel(self):
        adapter = Adapter.from_model(adapted("2d"))
        torch.manual_seed(0)
        other = nn.Sequential(nn.Conv2d(9, 8, (1, 3))).double()  # as many columns in lora_A
        before = snapshot(other)
        with pytest.raises(
            AdapterMismatchError,
            match=r"for a convolution of 3 channels by \[3, 3\], but the base's layer is a "
            r"convolution of 9 channels by \[1, 3\]",
        ):
            add_adapter(other, adapter)
        assert_untouched(other, before)

    def test_a_file_for_a_linear_layer(self):
        linear = nn.Sequential(nn.Linear(27, 8)).double()
        with pytest.raises(AdapterMismatchError, match="the base's layer is no convolution"):
            add_adapter(linear, Adapter.from_model(adapted("2d")))

    def test_a_rank_above_the_layer(self):
        with pytest.raises(ShapeError, match=r"0 \(in=27, out=8, r=9\)"):
            adapted(r=9)

    def test_formats_that_know_no_convolutions(self):
        adapter = Adapter.from_model(adapted())
        with pytest.raises(AdapterFileError, match=r"adapted convolutions \(0\)"):
            portable_adapter(adapter)
        with pytest.raises(AdapterFileError, match="it is a convolution"):
            to_loralib(adapter)


def test_all_linear_leaves_convolutions_out():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 8))
    found = add_adapter(model, LoraConfig(r=1, target_modules="all-linear"))
    assert [match.path for match in found.matches] == ["2"]
    assert not found.skipped
