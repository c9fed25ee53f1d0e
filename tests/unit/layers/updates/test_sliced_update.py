"""Updates of some of the equal parts of a fused matrix."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit import (
    LoraConfig,
    QuantizationConfig,
    adapter_rows,
    add_adapter,
    disable_adapters,
    merge_adapters,
    quantize_model,
    set_adapter,
    unload,
    unmerge_adapters,
)
from lorakit.adapters import Adapter, adapter_state_dict, load_adapter_state_dict
from lorakit.errors import AdapterMismatchError, ConfigError, ShapeError, TargetError
from lorakit.layers.updates.sliced_update import SlicedUpdate, in_blocks, out_of_blocks
from tiny_models import randomize_
from tiny_models.quantized import EIGHT, FOUR, dense_twin
from tolerances import largest_error

R, IN, OUT = 2, 6, 12
PARTS = [(True, False, True), (False, True, False), (True, True, True), (False, True)]


class Fused(nn.Module):
    """One fused matrix, as torch or as GPT-2 keeps it."""

    def __init__(self, kind="linear"):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(IN, OUT) if kind == "linear" else Conv1D(OUT, IN)

    def forward(self, x):
        return self.qkv(x)


def fused(parts, kind="linear", **options):
    model = Fused(kind).double()
    config = {"r": R, "lora_alpha": 3, "target_modules": ["qkv"], "enable_lora": {"qkv": parts}}
    add_adapter(model, LoraConfig(**config | options))
    randomize_(model)
    return model


def by_parts(model, x):
    """Return what the base gives, plus each adapted part's own product."""
    update = model.qkv.updates["default"]
    with disable_adapters(model):
        h = model(x).detach().clone()
    groups = sum(update.parts)
    ours = iter(zip(update.lora_A.chunk(groups), update.lora_B.chunk(groups), strict=True))
    height = OUT // len(update.parts)
    pieces = list(h.split(height, -1))
    for part, is_adapted in enumerate(update.parts):
        if is_adapted:
            A, B = next(ours)
            pieces[part] = pieces[part] + update.scaling * ((x @ A.t()) @ B.t())
    return torch.cat(pieces, -1)


X = torch.randn(3, 4, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("parts", PARTS)
def test_each_part_has_a_product_of_its_own(parts, kind):
    model = fused(parts, kind)
    update = model.qkv.updates["default"]
    assert isinstance(update, SlicedUpdate)
    assert update.lora_A.shape == (sum(parts) * R, IN)
    assert update.lora_B.shape == (sum(parts) * OUT // len(parts), R)
    expected = by_parts(model, X)
    torch.testing.assert_close(model(X), expected)
    probe = torch.randn(expected.shape, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * probe).sum(), [update.lora_A, update.lora_B])
    got = torch.autograd.grad((model(X) * probe).sum(), [update.lora_A, update.lora_B])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_fresh_one_changes_nothing():
    model = Fused().double()
    before = model(X)
    add_adapter(model, LoraConfig(r=R, target_modules=["qkv"], enable_lora={"qkv": PARTS[0]}))
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_merged_and_back(kind):
    model = fused(PARTS[0], kind)
    before = copy.deepcopy(model.qkv.weight)
    expected = model(X)
    merge_adapters(model)
    torch.testing.assert_close(model(X), expected)
    rows = model.qkv.weight if kind == "linear" else model.qkv.weight.t()
    untouched = before if kind == "linear" else before.t()
    assert torch.equal(rows[OUT // 3 : 2 * OUT // 3], untouched[OUT // 3 : 2 * OUT // 3])
    unmerge_adapters(model)
    assert torch.equal(model.qkv.weight, before)


def test_the_file_holds_an_ordinary_update_of_all_parts(tmp_path):
    model = fused(PARTS[0], lora_dropout=0.1, use_rslora=True)
    Adapter.from_model(model).save(tmp_path / "adapter")
    loaded = Adapter.load(tmp_path / "adapter")
    A, B = loaded.factors["qkv"]
    assert (A.shape, B.shape) == ((2 * R, IN), (OUT, 2 * R))
    assert loaded.config.scaling_for("qkv") == pytest.approx(3 / R**0.5)
    other = Fused().double()
    add_adapter(other, loaded)
    torch.testing.assert_close(other.eval()(X), model.eval()(X))


def test_a_state_dict_goes_back():
    model, other = fused(PARTS[0]), fused(PARTS[0])
    randomize_(other, seed=5)
    assert largest_error(other(X), model(X)) > 0.01
    load_adapter_state_dict(other, adapter_state_dict(model))
    assert torch.equal(other(X), model(X))


def test_factors_that_mix_parts_are_refused_and_nothing_is_copied():
    model = fused(PARTS[0])
    before = model(X)
    mixed = {key: torch.ones_like(t) for key, t in adapter_state_dict(model).items()}
    with pytest.raises(AdapterMismatchError, match=r"mixes \d slices that are adapted separately"):
        load_adapter_state_dict(model, mixed)
    assert torch.equal(model(X), before)


def test_rows_with_adapters_of_their_own():
    model = fused(PARTS[0])
    config = LoraConfig(r=3, target_modules=["qkv"], enable_lora={"qkv": PARTS[2]})
    add_adapter(model, config, "second")
    randomize_(model, seed=3)
    expected = []
    for row, name in zip(X, ("second", None, "default"), strict=True):
        set_adapter(model, name)
        expected.append(model(row[None]))
    with adapter_rows(model, ["second", None, "default"]):
        got = model(X)
    torch.testing.assert_close(got, torch.cat(expected))


def test_dropout_and_magnitudes_act():
    model = fused(PARTS[0], lora_dropout=0.5, use_dora=True)
    assert not torch.equal(model(X), model(X))
    model.eval()
    update = model.qkv.updates["default"]
    W = model.qkv.weight + update.delta_weight()
    W = W * (update.magnitude / W.norm(dim=1))[:, None]
    torch.testing.assert_close(model(X), X @ W.t() + model.qkv.bias)


@pytest.mark.parametrize("settings", [FOUR, EIGHT], ids=["nf4", "int8"])
def test_on_a_quantized_weight(settings):
    torch.manual_seed(0)
    model = quantize_model(nn.Sequential(nn.Linear(64, 96)), QuantizationConfig(**settings))
    x = torch.randn(5, 64)
    base = dense_twin(model)(x)
    config = LoraConfig(r=R, target_modules=["0"], enable_lora={"0": (True, False, True)})
    add_adapter(model, config)
    randomize_(model)
    change = x @ model[0].updates["default"].delta_weight().t()
    assert torch.equal(change[:, 32:64], torch.zeros(5, 32)) and change[:, :32].abs().max() > 0.1
    assert largest_error(model(x), base + change) < 1e-5


def test_nothing_is_left_after_unload():
    model = fused(PARTS[0])
    unload(model)
    assert type(model.qkv) is nn.Linear
    assert torch.equal(model(X), Fused().double()(X))


class TestRefused:
    def test_parts_that_do_not_divide_the_outputs(self):
        with pytest.raises(ShapeError, match="5 slices, expected a divisor of its 12 outputs"):
            fused((True,) * 5)

    def test_a_rank_above_that_of_a_part(self):
        with pytest.raises(ShapeError, match=r"qkv \(in=6, out=4, r=5\)"):
            fused(PARTS[0], r=5)

    def test_a_name_that_matches_nothing(self):
        with pytest.raises(TargetError, match=r"enable_lora.*qvk"):
            fused(PARTS[0], enable_lora={"qvk": PARTS[0]})

    @pytest.mark.parametrize("parts", [(), (True,), (False, False)])
    def test_parts_that_say_nothing(self, parts):
        with pytest.raises(ConfigError, match="expected true or false for each"):
            fused(parts)

    def test_an_initialization_of_the_whole_matrix(self):
        with pytest.raises(TargetError, match="init_lora_weights='orthogonal'"):
            fused(PARTS[0], init_lora_weights="orthogonal")

    def test_an_embedding(self):
        model = nn.Sequential(nn.Embedding(5, 6))
        config = LoraConfig(r=1, target_modules=["0"], enable_lora={"0": (True, False)})
        with pytest.raises(TargetError, match="0: it is a Embedding, expected a linear layer"):
            add_adapter(model, config)
        assert type(model[0]) is nn.Embedding


def test_blocks_go_there_and_back():
    B = torch.randn(8, 3)
    for parts in [(True, False, True), (True, True), (False, True, False, True)]:
        spread = in_blocks(B, parts)
        assert spread.shape == (4 * len(parts), 6)
        assert torch.equal(out_of_blocks(spread, parts), B)
    assert out_of_blocks(torch.ones(12, 6), (True, False, True)) is None
    assert out_of_blocks(torch.ones(11, 6), (True, False, True)) is None
