"""MLPs of transformers models as one node: which are known, and when one runs as its parts."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as module_globals
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, LlamaConfig
from transformers.activations import ACT2CLS, ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mistral.modeling_mistral import MistralMLP
from transformers.models.phi3.modeling_phi3 import Phi3MLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from lorakit import LoraConfig, add_adapter, merge_adapters, set_adapter, set_fused_mlp
from lorakit.layers.class_swap import swap_class
from lorakit.layers.executors import fused_mlp
from lorakit.layers.executors.fused_mlp import (
    FusedMlp,
    activation_of,
    fuse_in_place,
    is_known_mlp,
    unfuse_in_place,
)
from lorakit.ops import mlp
from tiny_models import assert_untouched, randomize_, snapshot
from tolerances import largest_error

GATED = ["gate_proj", "up_proj", "down_proj"]


def plain(cls=LlamaMLP, **options):
    torch.manual_seed(0)
    if cls is GPT2MLP:
        return GPT2MLP(24, GPT2Config(n_embd=8, resid_pdrop=0.0, **options)).eval()
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 1}
    config = LlamaConfig(mlp_bias=True, **sizes, **options)
    config.hidden_activation = "gelu_pytorch_tanh"  # Gemma 2 has another name for it
    return cls(config).eval()


def adapted(cls=LlamaMLP, dropout=0.0, targets=None, **options):
    """Return an MLP with an adapter on each of its layers, which runs as one node."""
    model = plain(cls, **options)
    targets = targets or (["c_fc", "c_proj"] if cls is GPT2MLP else GATED)
    add_adapter(model, LoraConfig(r=2, target_modules=targets, lora_dropout=dropout))
    assert isinstance(model, FusedMlp)
    return randomize_(model)


def x_of(*shape):
    return torch.randn(*(shape or (5,)), 8)


def gradients(model, x, of=None):
    """Return output and gradients of a pass that draws the same numbers each time.

    `of` is the module whose gradients they are, where another callable runs it.
    """
    trained = of or model
    trained.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    out = model(x)
    out.square().sum().backward()
    named = {n: p.grad.clone() for n, p in trained.named_parameters() if p.grad is not None}
    return out.detach(), named | {"x": x.grad}


def assert_same(got, expected):
    assert largest_error(got[0], expected[0]) < 1e-5
    assert list(got[1]) == list(expected[1])
    for name, gradient in expected[1].items():
        assert largest_error(got[1][name], gradient) < 2e-5, name


@pytest.fixture
def fused(monkeypatch):
    """Activations of the calls that ran as one node."""
    calls = []

    def spy(x, inner, down, activation):
        calls.append(activation)
        return mlp.low_rank_mlp(x, inner, down, activation)

    monkeypatch.setattr(fused_mlp, "low_rank_mlp", spy)
    return calls


class SameFormula(LlamaMLP):
    """Other words, the same instructions."""

    def forward(self, hidden):
        """Have a docstring."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


class Sum(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))


class Scaled(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * 2


class Swapped(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))


class Wrapped(LlamaMLP):
    def forward(self, x):
        return super().forward(x)


KNOWN = [LlamaMLP, Qwen2MLP, Qwen3MLP, MistralMLP, GemmaMLP, Gemma2MLP, GPT2MLP, SameFormula]


@pytest.mark.parametrize("cls", KNOWN)
def test_known_forwards(cls):
    assert is_known_mlp(plain(cls))


@pytest.mark.parametrize("cls", [Sum, Scaled, Swapped, Wrapped, Phi3MLP])
def test_other_forwards_are_left_alone(cls):
    module = plain(cls)
    assert not is_known_mlp(module)
    add_adapter(module, LoraConfig(r=2, target_modules=["down_proj"]))
    assert type(module) is cls


@pytest.mark.parametrize("cls", KNOWN)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_output_and_gradients_are_those_of_the_parts(cls, dropout, fused):
    model = adapted(cls, dropout).train()
    x = x_of(2, 3)
    got = gradients(model, x)
    assert len(fused) == 1
    set_fused_mlp(model, False)
    assert type(model) is cls
    assert_same(got, gradients(model, x))
    assert len(fused) == 1


@pytest.mark.parametrize("targets", [["gate_proj"], ["up_proj"], ["down_proj"], GATED[:2]])
def test_layers_without_an_adapter(targets, fused):
    model = adapted(dropout=0.4, targets=targets).train()
    x = x_of()
    got = gradients(model, x)
    assert len(fused) == 1
    set_fused_mlp(model, False)
    assert_same(got, gradients(model, x))


def test_both_passes_of_a_reentrant_checkpoint_draw_the_same_masks():
    # Whether its parts share a mask, as those of a group, or would draw their own.
    model = adapted(dropout=0.4).train()
    for layer in (model.gate_proj, model.up_proj):
        layer.siblings.leave(layer)
    x = x_of(2, 3)
    kept = gradients(model, x)
    made_again = gradients(lambda x: checkpoint(model, x, use_reentrant=True), x, of=model)
    assert_same(made_again, kept)


def test_gpt2_s_dropout_acts_behind_the_node(fused):
    model = adapted(GPT2MLP).train()
    model.dropout.p = 0.5
    got = gradients(model, x_of(50))
    assert fused == ["gelu_tanh"]
    assert 0.35 < (got[0] == 0).double().mean() < 0.65


@pytest.mark.parametrize("name", [n for n in ACT2CLS if n not in ("xielu", "prelu")])
def test_an_activation_that_is_known_is_the_one_that_runs(name):
    module = ACT2FN[name]
    x = torch.linspace(-4, 4, 200)
    known = activation_of(module)
    assert (known is not None) == (name in {
        "gelu", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "gelu_python_tanh", "relu", "silu",
        "swish",
    })  # fmt: skip
    if known is not None:
        assert largest_error(mlp._act(x, known), module(x)) < 1e-6


def test_activations_of_torch():
    assert activation_of(nn.GELU()) == "gelu"
    assert activation_of(nn.GELU(approximate="tanh")) == "gelu_tanh"
    hooked = nn.SiLU()
    hooked.register_forward_hook(lambda module, args, out: out * 2)
    patched = nn.SiLU()
    patched.forward = torch.tanh
    like_gelu = type("Mine", (nn.GELU,), {"forward": lambda self, x: x})()
    like_silu = type("SiLU", (nn.Module,), {"forward": lambda self, x: x})()
    assert {activation_of(m) for m in (hooked, patched, like_gelu, like_silu)} == {None}


def double(module, *args):
    return args[-1] * 2


REASONS = {
    "forward hook": lambda m: m.down_proj.register_forward_hook(double),
    "pre-hook": lambda m: m.up_proj.register_forward_pre_hook(lambda m, args: (args[0] * 2,)),
    "backward hook": lambda m: m.gate_proj.register_full_backward_hook(
        lambda m, grad_x, grad_h: (grad_x[0] * 2,)
    ),
    "backward pre-hook": lambda m: m.down_proj.register_full_backward_pre_hook(
        lambda m, grad_h: (grad_h[0] * 2,)
    ),
    "hook on the activation": lambda m: m.act_fn.register_forward_hook(double),
    "another activation": lambda m: setattr(m, "act_fn", nn.Tanh()),
    "its own forward": lambda m: setattr(m.down_proj, "forward", lambda x: x[..., :8] * 2),
    "accelerate": lambda m: setattr(m.up_proj, "_hf_hook", object()),
    "another kind of layer": lambda m: setattr(m, "up_proj", nn.Sequential(m.up_proj)),
    "no adapter acts": lambda m: set_adapter(m, None),
    "merged": lambda m: merge_adapters(m),
}


@pytest.mark.parametrize("change", REASONS.values(), ids=REASONS)
def test_its_parts_run_where_something_would_be_missed(change, fused):
    model, apart = adapted(), adapted()
    set_fused_mlp(apart, False)
    change(model)
    change(apart)
    x = x_of()
    assert_same(gradients(model, x), gradients(apart, x))
    assert fused == []


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "backward", "backward_pre"])
def test_its_parts_run_under_hooks_on_all_modules(kind, fused):
    model, seen = adapted(), []
    register = {
        "forward": module_globals.register_module_forward_hook,
        "forward_pre": module_globals.register_module_forward_pre_hook,
        "backward": module_globals.register_module_full_backward_hook,
        "backward_pre": module_globals.register_module_full_backward_pre_hook,
    }[kind]
    handle = register(lambda module, *rest: seen.append(module))
    try:
        gradients(model, x_of())
    finally:
        handle.remove()
    assert fused == [] and {model.gate_proj, model.up_proj, model.down_proj} <= set(seen)


def test_its_parts_run_without_gradients(fused):
    model = adapted()
    x = x_of()
    expected = model(x)
    assert len(fused) == 1
    with torch.no_grad():
        got = model(x)
    assert not got.requires_grad and largest_error(got, expected) < 1e-6
    with torch.inference_mode():
        assert largest_error(model(x), expected) < 1e-6
    assert len(fused) == 1


def test_the_argument_may_be_named(fused):
    for model, name in ((adapted(), "x"), (adapted(GPT2MLP), "hidden_states")):
        x = x_of()
        assert largest_error(model(**{name: x}), model(x)) < 1e-6
        with pytest.raises(TypeError):
            model(x, x)
        with pytest.raises(TypeError):
            model(x, other=x)


def test_hooks_on_the_mlp_itself_run(fused):
    model = adapted()
    x = x_of()
    expected = model(x) * 2
    model.register_forward_hook(double)
    assert torch.equal(model(x), expected) and len(fused) == 2


@pytest.mark.parametrize("cls", [LlamaMLP, GPT2MLP])
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(cls, copier, fused):
    model = adapted(cls)
    twin = copier(model)
    assert type(twin) is type(model) and twin is not model
    x = x_of()
    assert_same(gradients(twin, x), gradients(model, x))
    assert len(fused) == 2
    unfuse_in_place(twin)
    assert type(twin) is cls and isinstance(model, FusedMlp)


def test_fusing_and_back_leaves_no_trace():
    for module in (plain(), plain(GPT2MLP)):
        before = snapshot(module)
        fuse_in_place(module)
        assert isinstance(module, type(module).__mro__[2]) and not is_known_mlp(module)
        unfuse_in_place(module)
        assert_untouched(module, before)


def test_an_mlp_with_a_forward_of_its_own_is_left_alone():
    module = plain()
    module.forward = lambda x: x
    fuse_in_place(module)
    assert type(module) is LlamaMLP


def test_a_class_put_on_top_stays():
    # As fully_shard does it.
    module = adapted()
    on_top = type("Sharded", (nn.Identity, type(module)), {"forward": type(module).forward})
    swap_class(module, on_top)
    x = x_of()
    expected = gradients(module, x)
    unfuse_in_place(module)
    assert type(module) is on_top
    assert_same(gradients(module, x), expected)
    set_adapter(module, None)
    gate = F.linear(x, module.gate_proj.weight, module.gate_proj.bias)
    up = F.linear(x, module.up_proj.weight, module.up_proj.bias)
    out = F.linear(F.silu(gate) * up, module.down_proj.weight, module.down_proj.bias)
    assert largest_error(module(x), out) < 1e-6
