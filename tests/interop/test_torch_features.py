"""What PyTorch does with whole models: compile, checkpoint, copy, pickle, save."""

import copy
import pickle
import shutil
import time

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter, merge_adapters, set_adapter, unload, unmerge_adapters
from lorakit.ops import keep_mask
from tiny_models import (
    bert,
    bloom,
    distilbert,
    gpt2,
    llama,
    logits,
    randomize_,
    t5,
    tokens,
    train_steps,
)
from tolerances import GRADIENT_TOLERANCE, LOGITS_TOLERANCE, largest_error

# torch 2.13's own tracer makes an instance of the autograd function it traces.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Function'> should not be instantiated:DeprecationWarning"
)


def with_adapter(build, **options):
    model = build()
    task = {distilbert: "SEQ_CLS", bert: "TOKEN_CLS"}.get(build)
    add_adapter(model, LoraConfig(**({"r": 2, "task_type": task} | options)))
    return randomize_(model)


def gradients(model, inputs):
    model.zero_grad()
    out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    out = out if isinstance(out, torch.Tensor) else out.logits
    out.float().square().sum().backward()
    names = (n.removeprefix("_orig_mod.") for n, _ in model.named_parameters())
    return out.detach(), {
        n: p.grad.clone()
        for n, p in zip(names, model.parameters(), strict=True)
        if p.grad is not None
    }


def assert_same(got, expected):
    (out, grads), (expected_out, expected_grads) = got, expected
    assert largest_error(out, expected_out) < LOGITS_TOLERANCE
    assert list(grads) == list(expected_grads) and grads
    for name, gradient in expected_grads.items():
        assert largest_error(grads[name], gradient) < 1e-4, name


class Layers(nn.Module):
    """Every layer kind, twice Linear, one head; small enough to compile in seconds."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 8)
        self.up = nn.Linear(8, 16)
        self.down = Conv1D(8, 16)
        self.norm = nn.LayerNorm(8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, ids):
        h = self.embed(ids)
        return self.classifier(self.norm(h + self.down(torch.tanh(self.up(h)))))


IDS = torch.arange(10).reshape(2, 5)


def layers(dropout=0.0, **options):
    model = Layers()
    config = LoraConfig(
        r=2,
        target_modules=["embed", "up", "down"],
        task_type="SEQ_CLS",
        bias="all",
        lora_dropout=dropout,
        **options,
    )
    add_adapter(model, config)
    return randomize_(model)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class TestCompile:
    def test_one_graph_forward_and_backward_with_every_layer_kind(self):
        model = layers()
        expected = gradients(model, IDS)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same(gradients(compiled, IDS), expected)

    def test_under_autocast(self):
        model = layers()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = gradients(model, IDS)
            out, grads = gradients(compiled, IDS)
        assert out.dtype == expected[0].dtype == torch.bfloat16
        for name, gradient in expected[1].items():
            assert largest_error(grads[name], gradient) < GRADIENT_TOLERANCE[torch.bfloat16], name

    def test_a_transformer_in_one_graph(self):
        model = with_adapter(lambda: llama(num_hidden_layers=1))
        inputs = tokens(model) | {"use_cache": False}
        expected = gradients(model, inputs)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same(gradients(compiled, inputs), expected)

    def test_dropout_has_one_mask_in_forward_and_backward(self):
        model = layers(dropout=0.5).train()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "up.updates" in name:
                    parameter.fill_(1.0)
        compiled = torch.compile(model.up, fullgraph=True, backend="aot_eager")
        x = torch.ones(64, 8, requires_grad=True)
        base = nn.functional.linear(x, model.up.weight, model.up.updates["default"].bias)
        h = compiled(x)
        low_rank = (h - base).detach()[:, 0]  # s * r * (number of kept inputs) / keep
        h.sum().backward()
        # Each kept input of a row adds the same to that row's output and to its own gradient.
        base_gradient = model.up.weight.sum(0)
        kept = ((x.grad - base_gradient).abs() > 1e-3).sum(1)
        scale = low_rank.sum() / kept.sum()
        assert torch.allclose(low_rank, kept * scale, atol=1e-3)
        assert 0.35 < kept.sum().item() / kept.numel() / 8 < 0.65
        assert not torch.equal(compiled(x), h)

    def test_switching_adapters_and_merging_after_compiling(self):
        model = layers(init_lora_weights=False)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with_adapter_on = compiled(IDS)
        assert largest_error(with_adapter_on, model(IDS)) < LOGITS_TOLERANCE
        set_adapter(compiled, None)
        base = compiled(IDS)
        assert not torch.allclose(base, with_adapter_on)
        assert largest_error(base, model(IDS)) < LOGITS_TOLERANCE
        set_adapter(compiled, "default")
        assert largest_error(compiled(IDS), with_adapter_on) < LOGITS_TOLERANCE
        merge_adapters(compiled)
        assert largest_error(compiled(IDS), with_adapter_on) < LOGITS_TOLERANCE
        unmerge_adapters(compiled)
        assert largest_error(compiled(IDS), with_adapter_on) < LOGITS_TOLERANCE
        unload(compiled)
        assert largest_error(compiled(IDS), base) < LOGITS_TOLERANCE

    def test_adding_to_a_compiled_model(self):
        compiled = torch.compile(Layers(), fullgraph=True, backend="aot_eager")
        base = compiled(IDS)
        add_adapter(compiled, LoraConfig(r=2, init_lora_weights=False))
        assert not torch.allclose(compiled(IDS), base)

    @pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")  # inductor's own
    @pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
    def test_inductor_makes_the_mask_that_eager_makes(self):
        """Over 16 words inductor's loop has a second round, which an overflow would derail."""
        shape = (7, 143)
        compiled = torch.compile(keep_mask, fullgraph=True, dynamic=False)
        seed, cpu = torch.tensor(2**62 + 5), torch.device("cpu")
        assert torch.equal(compiled(shape, 0.1, seed, cpu), keep_mask(shape, 0.1, seed, cpu))

    @pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")  # inductor's own
    @pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
    def test_inductor(self):
        model = layers(dropout=0.1).eval()
        expected = gradients(model, IDS)
        compiled = torch.compile(model, fullgraph=True)
        assert_same(gradients(compiled, IDS), expected)
        model.train()
        assert not torch.equal(compiled(IDS), compiled(IDS))


class TestGradientCheckpointing:
    @pytest.mark.parametrize("build", [llama, gpt2, bert, bloom, t5])
    @pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
    def test_same_gradients_with_frozen_embeddings(self, build, reentrant):
        model = with_adapter(build, lora_dropout=0.3).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        inputs = tokens(model)
        torch.manual_seed(1)
        expected = gradients(model, inputs)
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        torch.manual_seed(1)
        assert_same(gradients(model, inputs), expected)


MODELS = [llama, gpt2, distilbert, bert, bloom, t5]
BIASES = ["none", "all"]


def round_trips():
    yield "deepcopy", copy.deepcopy
    yield "pickle", lambda model: pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("copier", [c for _, c in round_trips()], ids=[n for n, _ in round_trips()])
def test_copies_of_whole_models(build, bias, copier):
    model = with_adapter(build, bias=bias)
    expected = logits(model)
    twin = copier(model)
    assert torch.equal(logits(twin), expected)
    assert [n for n, p in twin.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    train_steps(twin, steps=1)
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(twin), expected)
    unload(twin)
    unload(model)
    assert torch.equal(logits(twin), logits(model))
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]


def test_torch_save_and_load_of_a_whole_model(tmp_path):
    model = with_adapter(distilbert, bias="all")
    torch.save(model, tmp_path / "model.pt")
    twin = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(logits(twin), logits(model))
    unload(twin)


def test_a_state_dict_goes_into_a_model_with_the_same_adapter():
    model = with_adapter(distilbert, bias="all")
    twin = with_adapter(distilbert, bias="all")
    randomize_(twin, seed=99)
    assert not torch.equal(logits(twin), logits(model))
    twin.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(twin), logits(model))


def test_a_base_checkpoint_goes_into_an_adapted_model():
    model = with_adapter(llama)
    adapted = logits(model)
    missing, unexpected = model.load_state_dict(llama().state_dict(), strict=False)
    assert unexpected == [] and all(".updates." in name for name in missing)
    assert torch.equal(logits(model), adapted)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_generate(build):
    model = with_adapter(build)
    ids = tokens(model)["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False, "min_new_tokens": 4}
    ours = model.generate(ids, **options)
    merge_adapters(model)
    assert torch.equal(model.generate(ids, **options), ours)
    unmerge_adapters(model)
    set_adapter(model, None)
    assert model.generate(ids, **options).shape == ours.shape


def test_moving_and_casting_a_model_takes_the_adapter_along():
    model = with_adapter(distilbert, bias="all").double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    logits(model)
    copy_of = model.distilbert.embeddings.LayerNorm.trained_copies["default"]
    assert copy_of.weight is model.distilbert.embeddings.LayerNorm.weight
    unload(model)


def test_gradients_accumulate_like_one_larger_batch():
    model = with_adapter(llama)
    inputs = tokens(model, rows=4)
    _, whole = gradients(model, inputs)
    model.zero_grad()
    for half in (slice(0, 2), slice(2, 4)):
        out = model(**{k: v[half] for k, v in inputs.items()}).logits
        out.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert largest_error(parameter.grad, whole[name]) < 1e-4


def test_injecting_into_a_7b_model_on_the_meta_device():
    """Works, and stays far from the minutes a quadratic walk would take; see benchmarks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    started = time.perf_counter()
    injection = add_adapter(model, LoraConfig(r=8))
    assert time.perf_counter() - started < 10
    assert len(injection.matches) == 32 * 7
    assert injection.lora_parameters == 8 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
