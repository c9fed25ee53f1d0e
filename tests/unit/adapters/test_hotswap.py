"""hotswap_adapter: other weights in the same place, compiled code untouched."""

import pytest
import torch

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    hotswap_adapter,
    merge_adapters,
    save_adapter,
    unload,
)
from lorakit.errors import (
    AdapterMismatchError,
    AdapterNameError,
    AdapterStateError,
    MissingFileError,
)
from tiny_models import TinyNet, bert, gpt2, llama, logits, randomize_
from tolerances import LOGITS_TOLERANCE, largest_error

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
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("with_gradients", [False, True], ids=["inference", "training"])
def test_a_compiled_model_is_not_compiled_anew(with_gradients):
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
    assert str(caught.value).startswith("The new adapter cannot take the place of 'default': ")
    assert torch.equal(logits(model), expected)


def test_a_head_that_the_new_adapter_lacks():
    model = adapted(modules_to_save=["lm_head"])
    with pytest.raises(AdapterMismatchError, match=r"it lacks lm_head\.weight"):
        hotswap_adapter(model, Adapter.from_model(adapted()))


def test_another_base_s_sizes():
    model = adapted(target_modules=ATTENTION)
    other = adapted(lambda: llama(num_key_value_heads=2), target_modules=ATTENTION)
    with pytest.raises(AdapterMismatchError, match=r"v_proj is from 16 to 16, expected 16 to 8"):
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 4}, "mixes the 3 parts that are adapted each by itself"),
        ({"r": 1, "enable_lora": [True, False, True]}, "has rank 2 in all its blocks, expected 4"),
    ],
)
def test_factors_without_those_parts_are_refused_and_nothing_changes(options, said):
    options = {"target_modules": ["c_attn"]} | options
    if "enable_lora" in options:
        options["enable_lora"] = {"c_attn": options["enable_lora"]}
    model = adapted(gpt2, enable_lora={"c_attn": [True, False, True]}, target_modules=["c_attn"])
    before = logits(model)
    new = Adapter.from_model(adapted(gpt2, 2, **options))
    with pytest.raises(AdapterMismatchError, match=said):
        hotswap_adapter(model, new)
    assert torch.equal(logits(model), before)
