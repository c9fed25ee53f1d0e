"""On whole models, fused MLPs differ by rounding alone, and fast paths of encoders are off."""

import copy
import pickle

import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorakit import (
    LoraConfig,
    adapter_rows,
    add_adapter,
    delete_adapter,
    merge_adapters,
    set_adapter,
    set_fused_mlp,
    unload,
    unmerge_adapters,
)
from lorakit.errors import AdapterNameError
from lorakit.layers.executors import fused_mlp
from lorakit.layers.executors.fused_mlp import FusedMlp
from lorakit.ops import low_rank_mlp
from tiny_models import (
    Encoder,
    assert_same_gradients,
    assert_untouched,
    distilbert,
    gpt2,
    llama,
    logits,
    randomize_,
    snapshot,
    tokens,
    train_steps,
)
from tolerances import LOGITS_TOLERANCE, largest_error


def causal(family, **options):
    """Return a tiny causal language model with one or two gated MLPs."""
    config = getattr(transformers, f"{family}Config")(
        **{
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "max_position_embeddings": 32,
            "pad_token_id": 0,
            "initializer_range": 0.2,
        }
        | options
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def adapted(build, **options):
    model = build() if callable(build) else causal(build)
    add_adapter(model, LoraConfig(**({"r": 2, "target_modules": "all-linear"} | options)))
    return randomize_(model, scale=0.1)


def gradients(model, **inputs):
    model.zero_grad()
    torch.manual_seed(2)
    out = model(**(tokens(model) | inputs)).logits
    out.square().mean().backward()
    named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return out.detach(), named


@pytest.fixture
def fused(monkeypatch):
    """Activations of the MLPs that ran as one node."""
    calls = []

    def spy(x, inner, down, activation):
        calls.append(activation)
        return low_rank_mlp(x, inner, down, activation)

    monkeypatch.setattr(fused_mlp, "low_rank_mlp", spy)
    return calls


FAMILIES = {
    "Llama": "silu",
    "Qwen2": "silu",
    "Qwen3": "silu",
    "Mistral": "silu",
    "Gemma": "gelu_tanh",
    "Gemma2": "gelu_tanh",
    "gpt2": "gelu_tanh",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_logits_and_gradients_on_and_off(family, dropout, fused):
    model = adapted(gpt2 if family == "gpt2" else family, lora_dropout=dropout).train()
    got = gradients(model)
    assert fused == [FAMILIES[family]] * 2
    assert set_fused_mlp(model, False) == 0
    # GPT-2's own dropouts draw their masks too: both ways draw the same numbers in one order.
    assert_same_gradients(got, gradients(model))
    assert len(fused) == 2
    assert set_fused_mlp(model) == 2
    assert_same_gradients(gradients(model), got)
    assert len(fused) == 4


def test_biases_of_the_base_and_trained_ones(fused):
    model = causal("Llama", mlp_bias=True)
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear", bias="lora_only"))
    randomize_(model, scale=0.1)
    got = gradients(model)
    assert fused and any(n.endswith("up_proj.updates.default.bias") for n in got[1])
    set_fused_mlp(model, False)
    assert_same_gradients(got, gradients(model))


def test_other_models_are_left_alone():
    model = distilbert()
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    assert set_fused_mlp(model, True) == 0
    assert not any(isinstance(module, FusedMlp) for module in model.modules())


def test_a_subclass_with_another_forward_is_left_alone(fused):
    model = llama()
    layer = model.model.layers[0].mlp

    class Halved(type(layer)):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) / 2

    layer.__class__ = Halved
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear"))
    assert type(layer) is Halved and set_fused_mlp(model) == 1
    model(**tokens(model))
    assert len(fused) == 1


def test_only_mlps_with_adapted_layers_are_counted():
    model = llama()
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"]), "one")
    assert set_fused_mlp(model) == 0
    targets = ["model.layers.1.mlp.up_proj"]
    add_adapter(model, LoraConfig(r=2, target_modules=targets), "two")
    assert set_fused_mlp(model) == 1
    set_adapter(model, None)
    assert set_fused_mlp(model) == 1


def test_the_first_adapter_turns_it_on_and_the_next_ones_leave_it_as_it_is(fused):
    model = adapted(llama)
    model(**tokens(model))
    assert len(fused) == 2
    set_fused_mlp(model, False)
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear"), "second")
    model(**tokens(model))
    assert len(fused) == 2
    unload(model)
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear"))
    model(**tokens(model))
    assert len(fused) == 4


def test_a_model_without_adapters_is_refused():
    with pytest.raises(AdapterNameError, match="LlamaForCausalLM carries no adapter"):
        set_fused_mlp(llama())


def set_aside_and_delete(model, name="default"):
    set_adapter(model, None)
    delete_adapter(model, name)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_unload_and_delete_leave_no_trace(build):
    for leave in (unload, set_aside_and_delete):
        model = build()
        before = snapshot(model)
        add_adapter(model, LoraConfig(r=2, target_modules="all-linear"))
        with pytest.raises(AssertionError):
            assert_untouched(model, before)
        leave(model) if leave is unload else leave(model, "default")
        assert_untouched(model, before)


def test_names_of_parameters_and_checkpoints_do_not_change():
    model = adapted(llama)
    state = model.state_dict()
    set_fused_mlp(model, False)
    assert list(model.state_dict()) == list(state)
    assert {n.replace(".updates.default", "") for n in state} >= set(llama().state_dict())
    twin = adapted(llama)
    twin.load_state_dict(state)
    assert torch.equal(logits(twin), logits(model))


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_whole_models(build, copier, fused):
    model = adapted(build)
    expected = gradients(model)
    twin = copier(model)
    fused.clear()
    assert_same_gradients(gradients(twin), expected)
    assert len(fused) == 2
    train_steps(twin, steps=1)
    assert_same_gradients(gradients(model), expected)
    unload(twin)
    unload(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(logits(twin), logits(model))


def test_merging_and_back(fused):
    model = adapted(llama)
    expected = gradients(model)
    fused.clear()
    merge_adapters(model)
    assert largest_error(model(**tokens(model)).logits, expected[0]) < LOGITS_TOLERANCE
    assert fused == []
    unmerge_adapters(model)
    assert_same_gradients(gradients(model), expected)
    assert len(fused) == 2


@pytest.mark.parametrize("trained", ["down_proj", "up_proj"])
def test_a_copy_that_another_adapter_trains_acts(trained, fused):
    # down_proj carries updates of "one" and a copy of "two": as one node the copy would be lost.
    model = adapted(llama)
    targets, path = ["gate_proj"], f"model.layers.0.mlp.{trained}"
    config = LoraConfig(r=2, target_modules=targets, modules_to_save=[path])
    add_adapter(model, config, "two")
    randomize_(model, scale=0.1)
    got = gradients(model)
    assert len(fused) == 1  # the other layer's MLP
    assert any(f"{trained}.trained_copies.two.weight" in name for name in got[1])
    set_fused_mlp(model, False)
    assert_same_gradients(got, gradients(model))


def test_rows_with_adapters_of_their_own():
    model = adapted(llama)
    add_adapter(model, LoraConfig(r=3, target_modules=["gate_proj", "down_proj"]), "two")
    randomize_(model, scale=0.1)
    set_adapter(model, "default")
    with adapter_rows(model, ["two", None]):
        got = gradients(model)
    set_fused_mlp(model, False)
    with adapter_rows(model, ["two", None]):
        assert_same_gradients(got, gradients(model))


def test_disabled_layers_inside_one_mlp(fused):
    model = llama()
    add_adapter(model, LoraConfig(r=2, target_modules=["gate_proj"]), "gate")
    add_adapter(model, LoraConfig(r=3, target_modules=["down_proj"]), "down")
    for names in ("gate", "down", ["gate", "down"]):
        set_adapter(model, names)
        randomize_(model, scale=0.1)
        set_fused_mlp(model, True)
        got = gradients(model)
        set_fused_mlp(model, False)
        assert_same_gradients(got, gradients(model))
    assert len(fused) == 6


@pytest.mark.parametrize("build", [llama, gpt2])
def test_checkpointed_mlps(build, fused):
    model = adapted(build, lora_dropout=0.3).train()
    expected = gradients(model)
    for module in model.modules():
        if isinstance(module, FusedMlp):
            inside = module.forward
            module.forward = lambda x, inside=inside: checkpoint(inside, x, use_reentrant=False)
    assert_same_gradients(gradients(model), expected)
    assert len(fused) == 6  # the second pass runs as one node too


def test_autocast(fused):
    model = adapted(llama)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(model)
        set_fused_mlp(model, False)
        expected = gradients(model)
    assert len(fused) == 2 and got[0].dtype == expected[0].dtype
    assert largest_error(got[0], expected[0]) < 0.05  # two layers, each of three bfloat16 products


def test_generation_and_evaluation_run_its_parts(fused):
    model = adapted(llama)
    ids = tokens(model)["input_ids"]
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    on = model.generate(ids, **options)
    assert fused == []
    set_fused_mlp(model, False)
    assert torch.equal(model.generate(ids, **options), on)


# torch 2.13's own tracer makes an instance of the autograd function it traces, and asks for the
# gradient of its input.
@pytest.mark.slow(reason="compiles a model")
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("build", [llama, gpt2])
def test_each_mlp_compiles_in_one_graph(build, fused):
    torch.compiler.reset()
    model = adapted(build)
    expected = gradients(model)
    assert len(fused) == 2
    for module in model.modules():
        if isinstance(module, FusedMlp):
            module.compile(fullgraph=True, backend="aot_eager")
    assert_same_gradients(gradients(model), expected)
    assert len(fused) == 2  # the compiler fuses the parts itself
    torch.compiler.reset()


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("saved", ["mlp", "layers.1"])
def test_an_mlp_that_a_later_adapter_trains_in_full(copier, saved):
    model = adapted(llama)
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[saved]), "full")
    randomize_(model, seed=3)
    expected = logits(model)
    assert torch.equal(logits(copier(model)), expected)
    inside = model.get_submodule("model.layers.1.mlp" if saved == "mlp" else "model.layers.1")
    copied = inside.trained_copies["full"]
    assert not any(isinstance(part, FusedMlp) for part in copied.modules())
    set_adapter(model, "default")
    delete_adapter(model, "full")
    assert not torch.equal(logits(model), expected)


class Subclassed(nn.TransformerEncoderLayer):
    """Has its parent's fast path."""


def test_values_that_were_there_come_back():
    layer = Subclassed(8, 2, 16, batch_first=True)
    layer.activation_relu_or_gelu = 2
    model = nn.ModuleDict({"inside": layer, "score": nn.Linear(8, 8)})
    add_adapter(model, LoraConfig(r=1, target_modules=["score"]))
    assert layer.activation_relu_or_gelu == 2  # what is adapted stands outside of it
    add_adapter(model, LoraConfig(r=1, target_modules=["linear1"]), "other")
    assert layer.activation_relu_or_gelu == 0
    set_adapter(model, "other")
    assert layer.activation_relu_or_gelu == 0
    unload(model)
    assert layer.activation_relu_or_gelu == 2
    assert not any("lorakit" in name for name in vars(layer))


def test_a_model_that_is_one_encoder_layer_acts_with_its_update():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = layer(x)
        add_adapter(layer, LoraConfig(r=2, target_modules=["linear2"], init_lora_weights=False))
        assert (layer(x) - before).abs().max() > 1e-3


def test_a_module_trained_in_full_counts_as_adapted():
    model = Encoder()
    config = LoraConfig(r=1, target_modules=["score"], modules_to_save=["layers.1.norm1"])
    add_adapter(model, config)
    layers = model.encoder.layers
    assert [layer.activation_relu_or_gelu for layer in layers] == [1, 0]
    assert model.encoder.use_nested_tensor is False
    with torch.no_grad():
        expected = model(**tokens())
        layers[1].norm1.trained_copies["default"].weight.mul_(2)
        assert (model(**tokens()) - expected).abs().max() > 1e-3
