"""hotswap_adapter: other weights in the same place, compiled code untouched."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    adapter_rows,
    add_adapter,
    hotswap_adapter,
    load_adapter,
    merge_adapters,
    save_adapter,
    set_fused_mlp,
    unload,
)
from lorakit.adapters import adapter_state_dict, load_adapter_state_dict
from lorakit.adapters.on_model.hotswap import require_like_layers
from lorakit.errors import (
    AdapterMismatchError,
    AdapterNameError,
    AdapterStateError,
    MissingFileError,
)
from lorakit.layers import LowRankUpdate
from tiny_models import (
    TinyNet,
    bert,
    gpt2,
    llama,
    logits,
    mixtral,
    randomize_,
    tokens,
    train_steps,
)
from tiny_models.adapted import with_adapter
from tolerances import LOGITS_TOLERANCE, largest_error


class Pictures(nn.Module):
    """A convolution over a text's embedding, and a head."""

    config = type("Config", (), {"is_encoder_decoder": False})

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 8)
        self.conv, self.score = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask):
        return self.score(self.conv(self.embed(input_ids).transpose(1, 2)).transpose(1, 2))


ATTENTION = ["q_proj", "v_proj"]


def adapted(build=llama, seed=1, **options):
    model = build()
    add_adapter(model, LoraConfig(**({"r": 2} | options)))
    return randomize_(model, seed=seed)


def test_the_new_adapter_acts_bit_for_bit():
    model, other = adapted(), adapted(seed=2)
    parameters = [id(p) for p in model.parameters()]
    expected = logits(other)
    assert not torch.allclose(logits(model), expected)
    hotswap_adapter(model, Adapter.from_model(other))
    assert torch.equal(logits(model), expected)
    assert [id(p) for p in model.parameters()] == parameters


@pytest.mark.parametrize(
    "options",
    [
        {"r": 1},
        {"r": 1, "lora_alpha": 32, "use_rslora": True},
        {"r": 2, "lora_alpha": 1, "target_modules": ATTENTION},
        {"r": 1, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    ],
    ids=str,
)
def test_other_ranks_scalings_and_fewer_layers(options, tmp_path):
    model, other = adapted(r=3, lora_alpha=5), adapted(seed=2, **options)
    hotswap_adapter(model, Adapter.from_model(other))
    assert largest_error(logits(model), logits(other)) < LOGITS_TOLERANCE
    # What is saved from the place is the new adapter as well.
    save_adapter(model, tmp_path / "saved")
    unload(model)
    add_adapter(model, Adapter.load(tmp_path / "saved"))
    assert largest_error(logits(model), logits(other)) < LOGITS_TOLERANCE


@pytest.mark.parametrize("build", [bert, gpt2])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_heads_biases_and_conv1d_from_a_directory(build, bias, tmp_path):
    options = {"bias": bias, "task_type": "TOKEN_CLS" if build is bert else None}
    model, other = adapted(build, **options), adapted(build, seed=2, **options)
    save_adapter(other, tmp_path / "other")
    hotswap_adapter(model, tmp_path / "other")
    assert torch.equal(logits(model), logits(other))


def test_an_embedding():
    options = {"target_modules": ["embed_tokens", "q_proj"]}
    model, other = adapted(**options, r=3), adapted(seed=2, **options)
    hotswap_adapter(model, Adapter.from_model(other))
    assert largest_error(logits(model), logits(other)) < LOGITS_TOLERANCE


# torch 2.13's own tracer makes an instance of the autograd function it traces.
@pytest.mark.slow(reason="compiles a model")
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("with_gradients", [False, True], ids=["inference", "training"])
def test_a_compiled_model_is_not_compiled_again(with_gradients):
    torch.compiler.reset()
    options = {"target_modules": ["up", "down"]}
    model, other = adapted(TinyNet, r=4, **options), adapted(TinyNet, seed=2, r=3, **options)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids = torch.arange(12).reshape(3, 4)
    with torch.set_grad_enabled(with_gradients):
        before = compiled(ids)
        with torch._dynamo.config.patch(error_on_recompile=True):
            hotswap_adapter(compiled, Adapter.from_model(other))
            after = compiled(ids)
        assert not torch.allclose(after, before)
        assert largest_error(after, other(ids)) < LOGITS_TOLERANCE
    torch.compiler.reset()


MISFITS = {
    "larger rank": (
        {"r": 5},
        r"q_proj has rank 5, expected at most 2",
    ),
    "more layers": ({"target_modules": [*ATTENTION, "k_proj"]}, r"it adapts .*k_proj, which"),
    "a head": ({"modules_to_save": ["lm_head"]}, r"it trains lm_head\.weight"),
}


@pytest.mark.parametrize(("options", "message"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_named_and_nothing_is_copied(options, message):
    model = adapted(target_modules=ATTENTION)
    expected = logits(model)
    other = adapted(seed=2, **({"target_modules": ATTENTION} | options))
    with pytest.raises(AdapterMismatchError, match=message) as caught:
        hotswap_adapter(model, Adapter.from_model(other))
    assert str(caught.value).startswith("The new adapter cannot replace 'default': ")
    assert torch.equal(logits(model), expected)


def test_a_head_that_the_new_adapter_lacks():
    model = adapted(modules_to_save=["lm_head"])
    with pytest.raises(AdapterMismatchError, match=r"it lacks lm_head\.weight"):
        hotswap_adapter(model, Adapter.from_model(adapted()))


def test_another_base_s_sizes():
    model = adapted(target_modules=ATTENTION)
    other = adapted(lambda: llama(num_key_value_heads=2), target_modules=ATTENTION)
    with pytest.raises(AdapterMismatchError, match=r"v_proj maps 16 to 16, expected 16 to 8"):
        hotswap_adapter(model, Adapter.from_model(other))


def test_bad_names_paths_and_states(tmp_path):
    model = adapted()
    with pytest.raises(AdapterNameError, match="No adapter is named 'other'"):
        hotswap_adapter(model, Adapter.from_model(model), "other")
    with pytest.raises(MissingFileError):
        hotswap_adapter(model, tmp_path / "nothing")
    merge_adapters(model)
    with pytest.raises(AdapterStateError, match="Cannot exchange an adapter's weights while"):
        hotswap_adapter(model, Adapter.from_model(adapted()))


def test_parts_of_a_fused_matrix_take_the_weights_of_another():
    parts = {"c_attn": [True, False, True]}
    model, other = (adapted(gpt2, seed, enable_lora=parts) for seed in (1, 2))
    assert largest_error(logits(model), logits(other)) > 0.01
    hotswap_adapter(model, Adapter.from_model(other))
    assert torch.equal(logits(model), logits(other))


def slot(build=llama, max_rank=6, **options):
    """Return a model with an empty place for adapters of the modules and ranks to come."""
    model = build()
    config = LoraConfig(**({"r": 2} | options))
    add_adapter(model, config, max_rank=max_rank, trainable=False)
    return model


ARRIVING = [
    {"r": 6, "lora_alpha": 3},
    {"r": 1, "target_modules": ATTENTION, "lora_alpha": 32, "use_rslora": True},
    {"r": 4, "rank_pattern": {"q_proj": 6, "v_proj": 3}, "alpha_pattern": {"up_proj": 7}},
    {"r": 5, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    {"r": 3, "layers_to_transform": [1]},
    {"r": 3, "init_lora_weights": "pissa"},
]


def test_any_rank_up_to_the_declared_one_and_any_of_the_modules_take_the_place(tmp_path):
    model = slot()
    base = logits(llama())
    assert torch.equal(logits(model), base)
    for number, options in enumerate(ARRIVING):
        other = adapted(seed=number, **options)
        hotswap_adapter(model, Adapter.from_model(other))
        assert largest_error(logits(model), logits(other)) < LOGITS_TOLERANCE
        with adapter_rows(model, ["default", None]):
            mixed = logits(model)
        assert largest_error(mixed[0], logits(other)[0]) < LOGITS_TOLERANCE
        assert largest_error(mixed[1], base[1]) < LOGITS_TOLERANCE
        save_adapter(model, tmp_path / str(number))
        saved, wanted = Adapter.load(tmp_path / str(number)), Adapter.from_model(other)
        for path, (A, _) in wanted.factors.items():
            assert saved.factors[path][0].shape == A.shape
            assert torch.allclose(saved.delta_weight(path), wanted.delta_weight(path), atol=1e-5)
        assert all(not saved.delta_weight(p).any() for p in saved.factors.keys() - wanted.factors)
        fresh = llama()
        add_adapter(fresh, saved)
        assert largest_error(logits(fresh), logits(other)) < LOGITS_TOLERANCE


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (gpt2, {"target_modules": ["wte", "c_attn", "c_fc", "c_proj"]}),
        (bert, {"bias": "lora_only"}),
        (llama, {"use_dora": True}),
        (mixtral, {"target_parameters": ["gate_up_proj", "down_proj"], "target_modules": []}),
        (Pictures, {"target_modules": ["conv", "score"]}),
    ],
    ids=["Conv1D and embedding", "biases and head", "DoRA", "experts", "convolution"],
)
def test_every_kind_of_layer_has_room(build, options):
    options = {key: value for key, value in options.items() if value != []}
    model = slot(build, max_rank=4, **options)
    for r in (4, 1, 3):
        other = adapted(build, seed=r, r=r, **options)
        hotswap_adapter(model, Adapter.from_model(other))
        assert largest_error(logits(model), logits(other)) < LOGITS_TOLERANCE


@pytest.mark.parametrize("fused", [True, False])
def test_training_leaves_the_spare_ranks_zero_and_gives_what_it_gives_without(fused):
    model, plain = llama(), llama()
    torch.manual_seed(3)
    add_adapter(model, LoraConfig(r=2), max_rank=5)
    torch.manual_seed(3)
    add_adapter(plain, LoraConfig(r=2))
    for one in (model, plain):
        set_fused_mlp(one, fused)
        train_steps(one.train(), steps=3)
    mine, others = Adapter.from_model(model), Adapter.from_model(plain)
    assert mine.config == others.config
    for path, pair in others.factors.items():
        for got, wanted in zip(mine.factors[path], pair, strict=True):
            assert got.shape == wanted.shape
            assert largest_error(got, wanted) < LOGITS_TOLERANCE
    for layer in (module for module in model.modules() if isinstance(module, LowRankUpdate)):
        assert layer.lora_A.shape[0] == 5 and not layer.lora_A[2:].any()
        assert not layer.lora_B[:, 2:].any()


@pytest.mark.slow(reason="compiles a model")
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    ("build", "with_gradients"),
    [(TinyNet, False), (TinyNet, True), (lambda: llama(num_hidden_layers=1), False)],
    ids=["inference", "training", "siblings and MLPs"],
)
def test_a_compiled_model_takes_all_of_them_in_one_compilation(build, with_gradients):
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    targets = ["up", "down"] if build is TinyNet else [*ATTENTION, "k_proj", "up_proj", "down_proj"]
    model = slot(build, target_modules=targets)
    others = [
        adapted(build, seed=1, r=6, target_modules=targets, lora_alpha=3),
        adapted(build, seed=2, r=1, target_modules=targets[:1], use_rslora=True),
        adapted(build, seed=3, r=4, target_modules=targets[1:], lora_alpha=30),
    ]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = tokens(model)
    if build is not TinyNet:
        inputs["use_cache"] = False

    def run(one):
        out = one(**inputs)
        return out if isinstance(out, torch.Tensor) else out.logits

    with torch.set_grad_enabled(with_gradients):
        run(compiled)
        counters.clear()
        with torch._dynamo.config.patch(error_on_recompile=True):
            for other in others:
                hotswap_adapter(compiled, Adapter.from_model(other))
                assert largest_error(run(compiled), run(other)) < LOGITS_TOLERANCE
    assert counters["stats"]["unique_graphs"] == 0
    torch.compiler.reset()


def test_room_is_kept_for_an_adapter_that_is_loaded(tmp_path):
    save_adapter(adapted(r=2), tmp_path / "first")
    model, second = llama(), adapted(seed=2, r=5)
    load_adapter(model, tmp_path / "first", max_rank=5)
    hotswap_adapter(model, Adapter.from_model(second))
    assert largest_error(logits(model), logits(second)) < LOGITS_TOLERANCE
    merge_adapters(model)
    assert largest_error(logits(model), logits(second)) < LOGITS_TOLERANCE


def test_state_dicts_of_a_place_have_the_rank_of_what_is_in_it():
    model, other = slot(), adapted(seed=2, r=4)
    hotswap_adapter(model, Adapter.from_model(other))
    tensors = adapter_state_dict(model)
    assert {t.shape[0] for key, t in tensors.items() if "lora_A" in key} == {4}
    load_adapter_state_dict(model, {key: torch.zeros_like(t) for key, t in tensors.items()})
    assert torch.equal(logits(model), logits(llama()))


def test_the_message_on_a_module_without_a_place_says_how_to_declare_it():
    model = slot(target_modules=ATTENTION)
    with pytest.raises(AdapterMismatchError, match=r"it adapts .*k_proj, which 'default' does not"):
        hotswap_adapter(model, Adapter.from_model(adapted(target_modules=["k_proj"])))
    with pytest.raises(
        AdapterMismatchError, match=r"has rank 7, expected at most 6.*max_rank=\.\."
    ):
        hotswap_adapter(model, Adapter.from_model(adapted(r=7, target_modules=ATTENTION)))


# ---- kernels and blocks ----


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 4}, "mixes 3 slices that are adapted separately"),
        ({"r": 1, "enable_lora": [True, False, True]}, "has rank 2 in all its blocks, expected 4"),
    ],
)
def test_factors_without_those_parts_are_refused_and_nothing_changes(options, said):
    options = {"target_modules": ["c_attn"]} | options
    if "enable_lora" in options:
        options["enable_lora"] = {"c_attn": options["enable_lora"]}
    model = with_adapter(
        gpt2, enable_lora={"c_attn": [True, False, True]}, target_modules=["c_attn"]
    )
    before = logits(model)
    new = Adapter.from_model(with_adapter(gpt2, seed=2, **options))
    with pytest.raises(AdapterMismatchError, match=said):
        hotswap_adapter(model, new)
    assert torch.equal(logits(model), before)


def test_every_module_with_another_kernel_is_counted_and_modules_without_factors_are_not_asked():
    model = with_adapter(
        nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3), nn.Linear(4, 4)),
        target_modules=["0", "1", "2"],
    )
    same = Adapter.from_model(model)
    require_like_layers(model, same, "default")
    other = replace(same, convolutions={})
    with pytest.raises(AdapterMismatchError) as caught:
        require_like_layers(model, other, "default")
    assert str(caught.value) == (
        "The new adapter cannot replace 'default': 0 has another kernel, or other groups of "
        "channels; 1 more. Load it under another name."
    )
    require_like_layers(model, replace(other, factors={"2": same.factors["2"]}), "default")


def test_different_values_for_tied_copies_are_refused():
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    model = llama(tie_word_embeddings=True)
    add_adapter(model, LoraConfig(**options))
    same = Adapter.from_model(model)
    head = {"lm_head.weight": same.replaced["lm_head.weight"] + 1}
    other = replace(same, replaced={**same.replaced, **head})
    hotswap_adapter(model, same)
    with pytest.raises(AdapterMismatchError, match=r"lm_head.weight and model.embed_tokens.weight"):
        hotswap_adapter(model, other)
    tensors = adapter_state_dict(model)
    key = "base_model.model.lm_head.weight"
    with pytest.raises(AdapterMismatchError, match=f"{key} and .* differ"):
        load_adapter_state_dict(model, tensors | {key: other.replaced["lm_head.weight"]})
