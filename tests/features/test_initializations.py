"""Adapters that begin at the base's weight, or at what quantizing it has cost."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorakit import (
    Adapter,
    LoraConfig,
    adapter_names,
    adapter_rows,
    add_adapter,
    count_parameters,
    disable_adapters,
    hotswap_adapter,
    load_adapter,
    merge_adapters,
    save_adapter,
    set_adapter,
    unload,
    unmerge_adapters,
)
from lorakit.adapters import adapter_state_dict, load_adapter_state_dict
from lorakit.errors import (
    AdapterFileError,
    ShapeError,
    TargetError,
)
from lorakit.layers import OffsetUpdate
from lorakit.layers.bitsandbytes_storage import quantized_weight
from lorakit.ops.quantized import dense_copy
from tiny_models import gpt2, llama, logits, randomize_, tokens
from tiny_models.quantized import EIGHT, FOUR, dense_twin, quantized
from tolerances import LOGITS_TOLERANCE, largest_error

OFFSET = ["pissa", "pissa_niter_3", "olora", "lora_ga"]


def adapted(init, build=llama, base=None, **options):
    model = build() if base is None else base
    torch.manual_seed(1)
    add_adapter(model, LoraConfig(**{"r": 2, "lora_alpha": 3, "init_lora_weights": init} | options))
    return model


def updates(model, name="default"):
    return {
        path.removesuffix(f".updates.{name}"): module
        for path, module in model.named_modules()
        if path.endswith(f".updates.{name}")
    }


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("init", [*OFFSET, "eva"])
@pytest.mark.parametrize(
    "options",
    [{}, {"lora_dropout": 0.4}, {"use_rslora": True}, {"use_dora": True}, {"freeze_lora_a": True}],
    ids=str,
)
def test_an_initialized_model_has_the_outputs_of_the_base(build, init, options):
    base = build(**({"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0} if build is gpt2 else {}))
    kept = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    expected = logits(base)
    model = adapted(init, base=base, **options)
    # A magnitude is divided by the norm it is equal to, which rounds once.
    assert largest_error(logits(model), expected) <= (1e-6 if options.get("use_dora") else 0)
    with_gradients = model.train()(**tokens(model)).logits  # MLPs run as one node then
    assert largest_error(with_gradients, expected) < 1e-6
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("settings", [FOUR, EIGHT], ids=["4 bits", "8 bits"])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_on_a_quantized_base_they_start_from_the_dequantized_weight(init, settings, build):
    base = quantized(build(), **settings).eval()
    twin = dense_twin(base)
    of_library, expected = logits(base), logits(twin)  # which rounds inputs to int8
    model = adapted(init, base=base)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    adapted(init, base=twin)
    for path, update in updates(model).items():
        other = updates(twin)[path]
        pair = (update.lora_B @ update.lora_A, other.lora_B @ other.lora_A)
        assert largest_error(*pair) < 1e-4, path
    merge_adapters(model, quantized_base="dequantize")
    unmerge_adapters(model)
    assert torch.equal(logits(unload(model)), of_library)


@pytest.mark.parametrize("init", OFFSET)
def test_factors_are_float32_on_a_bfloat16_base_and_the_initialization_is_exact(init):
    base = llama().bfloat16()
    expected = logits(base)
    model = adapted(init, base=base)
    assert {u.lora_A.dtype for u in updates(model).values()} == {torch.float32}
    assert {u.initial_B.dtype for u in updates(model).values()} == {torch.float32}
    assert torch.equal(logits(model), expected)


def test_the_seed_decides_about_a_fast_svd_and_nothing_about_an_exact_one():
    for init, differs in (("pissa_niter_1", True), ("pissa", False)):
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            model = llama()
            torch.manual_seed(seed)
            add_adapter(model, LoraConfig(r=2, init_lora_weights=init))
            found.append(torch.cat([u.lora_A.flatten() for u in updates(model).values()]))
        assert torch.equal(*found) != differs


@pytest.mark.parametrize("init", ["pissa", "lora_ga"])
def test_only_what_is_trained_counts(init):
    model, plain = adapted(init), adapted(True)
    assert count_parameters(model) == count_parameters(plain)
    assert all(isinstance(update, OffsetUpdate) for update in updates(model).values())


@pytest.mark.parametrize("use_dora", [False, True])
def test_merging_rows_copies_and_switching(use_dora):
    """All of it as for an ordinary adapter of rank 2r with the same product."""
    model = randomize_(adapted("pissa", use_dora=use_dora, target_modules=["q_proj", "down_proj"]))
    twin = llama()
    add_adapter(twin, Adapter.from_model(model))
    for each in (model, twin):
        add_adapter(each, LoraConfig(r=3, target_modules=["q_proj"]), "other")
        randomize_(each, seed=4) if each is twin else None
    load_adapter_state_dict(model, adapter_state_dict(twin, "other"), "other")
    add_adapter(twin, Adapter.from_model(model), "same")
    mirrored = {
        "default": "same",
        ("default", "other"): ("same", "other"),
        "other": "other",
        None: None,
    }
    for names in mirrored:
        set_adapter(model, names)
        mirrored = [
            "same" if n == "default" else n
            for n in ([names] if isinstance(names, str) else names or [])
        ]
        set_adapter(twin, mirrored or None)
        assert largest_error(logits(model), logits(twin)) < LOGITS_TOLERANCE
    rows = ["default", None, "other"]
    with adapter_rows(model, rows), adapter_rows(twin, ["same", None, "other"]):
        assert largest_error(logits(model, rows=3), logits(twin, rows=3)) < LOGITS_TOLERANCE
    set_adapter(model, "default")
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    merge_adapters(model)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    unmerge_adapters(model)
    assert torch.equal(logits(model), expected)
    with disable_adapters(model):
        assert torch.equal(logits(model), logits(llama()))


@torch.no_grad()
def test_a_magnitude_follows_what_its_factors_have_become():
    """Effective factors are made again in each pass, in memory that the last ones may have had."""
    model = adapted("pissa", use_dora=True, target_modules=["q_proj"])
    layer = model.model.layers[0].self_attn.q_proj
    update = layer.updates["default"]
    term = update.term()
    before = layer.norms_with(update, term)
    randomize_(model)
    for place, factor in zip(term[:2], update.operand_factors(), strict=True):
        place.data.copy_(factor)  # which leaves no trace, as memory that is given out again
    after = layer.norms_with(update, term)
    expected = torch.linalg.vector_norm(layer.weight + update.delta_weight(), dim=1)
    assert largest_error(after, expected) < 1e-5
    assert largest_error(before, expected) > 1e-2


@pytest.mark.parametrize("init", OFFSET)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_file_is_an_ordinary_adapter_of_twice_the_rank(init, use_rslora, tmp_path):
    model = randomize_(adapted(init, use_rslora=use_rslora, rank_pattern={"q_proj": 3}))
    save_adapter(model, tmp_path)
    config = Adapter.load(tmp_path).config
    assert config.init_lora_weights is True and not config.use_rslora
    again = llama()
    injection = load_adapter(again, tmp_path)
    assert {m.r for m in injection.matches if "q_proj" in m.path} == {6}
    assert {m.r for m in injection.matches if "q_proj" not in m.path} == {4}
    assert largest_error(logits(again), logits(model)) < LOGITS_TOLERANCE


@pytest.mark.parametrize("init", OFFSET)
def test_its_tensors_go_back_bit_for_bit(init):
    model, other = randomize_(adapted(init)), adapted(init)
    load_adapter_state_dict(other, adapter_state_dict(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_another_adapter_can_take_its_place():
    model = adapted("pissa", r=2, target_modules=["q_proj", "v_proj"])
    new = llama()
    add_adapter(new, LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj"]))
    hotswap_adapter(model, Adapter.from_model(randomize_(new)))
    assert largest_error(logits(model), logits(new)) < LOGITS_TOLERANCE
    unconverted = Adapter(
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"),
        Adapter.from_model(new).factors,
    )
    before = logits(model)
    with pytest.raises(AdapterFileError, match=r"Cannot exchange the new adapter.*'pissa'"):
        hotswap_adapter(model, unconverted)
    assert torch.equal(logits(model), before)


# ---- LoftQ ----


@pytest.fixture
def checkpoint(tmp_path):
    def make(build=llama):
        build().save_pretrained(tmp_path / "base")
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base")

    return make


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("settings", [FOUR, EIGHT], ids=["4 bits", "8 bits"])
def test_loftq_gives_back_as_much_as_a_rank_can(checkpoint, build, settings):
    dense = dict(checkpoint(build).named_parameters())
    base = quantized(checkpoint(build), **settings).eval()
    codes = {k: v.clone() for k, v in base.state_dict().items()}
    model = adapted("loftq", base=base, use_rslora=True)
    assert updates(model)
    for path, update in updates(model).items():
        W = dense[f"{path}.weight"]
        W = W.t() if build is gpt2 else W
        lost = W - dense_copy(quantized_weight(model.get_submodule(path)), torch.float32)
        rest = (lost - update.delta_weight()).norm()
        assert rest < 0.99 * lost.norm(), path
        best = torch.linalg.svdvals(lost.double())[update.r :].norm()
        assert rest.item() == pytest.approx(best.item(), rel=1e-4), path
    state = base.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in codes.items())
    assert not any(isinstance(update, OffsetUpdate) for update in updates(model).values())


def test_loftq_brings_the_model_nearer_to_the_dense_one(checkpoint, tmp_path):
    expected = logits(checkpoint())
    plain = quantized(checkpoint()).eval()
    model = adapted("loftq", base=quantized(checkpoint()).eval(), r=6)
    near, far = (largest_error(logits(each), expected) for each in (model, plain))
    assert near < 0.8 * far
    save_adapter(model, tmp_path / "adapter")
    adapter = Adapter.load(tmp_path / "adapter")
    assert adapter.config.init_lora_weights is True
    assert {A.shape[0] for A, _ in adapter.factors.values()} == {6}
    load_adapter(plain, tmp_path / "adapter")
    assert largest_error(logits(plain), logits(model)) < 1e-6


# ---- what cannot begin so ----


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq", "eva", "lora_ga"])
def test_embeddings_are_refused(init):
    model = llama()
    with pytest.raises(TargetError, match=rf"embed_tokens with init_lora_weights='{init}'"):
        adapted(init, base=model, target_modules=["embed_tokens", "q_proj"])
    assert not adapter_names(model)


def test_lora_ga_takes_twice_the_rank():
    with pytest.raises(ShapeError, match=r"k_proj \(in=16, out=8, r=5\) and 3 more.*2r"):
        adapted("lora_ga", r=5)
