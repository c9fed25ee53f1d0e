"""torch.compile of adapted models: one graph, and the results of eager."""

import shutil

import pytest
import torch
from torch import nn

import tiny_models
from lorakit import LoraConfig, add_adapter, merge_adapters, set_adapter, unload, unmerge_adapters
from lorakit.injection import set_fused_mlp
from lorakit.layers import AdaptedLayer
from lorakit.ops import draw_seed, keep_mask
from tiny_models import assert_same_gradients, gradients, randomize_, tokens
from tolerances import GRADIENT_TOLERANCE, LOGITS_TOLERANCE, largest_error

pytestmark = [
    # torch 2.13's own tracer makes an instance of the autograd function it traces.
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning"),  # inductor's own
]
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is no g++"
)


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


def layers(dropout=0.0, targets=("embed", "up", "down"), **options):
    model = Layers()
    config = LoraConfig(
        r=2,
        target_modules=list(targets),
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


class TestEveryKindOfLayer:
    def test_one_graph_forward_and_backward_with_every_layer_kind(self):
        model = layers()
        expected = gradients(model, IDS)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same_gradients(gradients(compiled, IDS), expected)

    def test_under_autocast(self):
        model = layers()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = gradients(model, IDS)
            out, grads = gradients(compiled, IDS)
        assert out.dtype == expected[0].dtype == torch.bfloat16
        for name, gradient in expected[1].items():
            assert largest_error(grads[name], gradient) < GRADIENT_TOLERANCE[torch.bfloat16], name

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


ARCHITECTURES = {
    # Builder, the lists of its layers, and what is adapted.
    "llama": ("model.layers", ["q_proj", "v_proj", "down_proj"]),
    "bert": ("bert.encoder.layer", ["query", "dense"]),
    "gpt2": ("transformer.h", ["c_attn", "c_fc", "c_proj"]),
    "t5": ("encoder.block decoder.block", ["q"]),
}


def adapted(architecture, dropout):
    """Build a model of one layer, in training; the adapter's dropout is the only one."""
    lists, targets = ARCHITECTURES[architecture]
    model = getattr(tiny_models, architecture)()
    for path in lists.split():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, model.get_submodule(path)[:1])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    add_adapter(model, LoraConfig(r=2, lora_dropout=dropout, target_modules=targets))
    return randomize_(model).train()


def draw_layer_by_layer(model):
    """Let each layer draw the seed of its mask, as it does in a compiled graph.

    In eager, layers that read the same activation share one.
    """
    set_fused_mlp(model, False)
    for module in model.modules():
        if isinstance(module, AdaptedLayer):
            module.siblings = None
            module.choose_executor()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_transformer_in_training_is_one_graph_with_the_results_of_eager(architecture):
    model = adapted(architecture, dropout=0.05)
    inputs = tokens(model)
    if architecture != "bert":
        inputs["use_cache"] = False
    draw_layer_by_layer(model)
    torch.manual_seed(1)
    expected = gradients(model, inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    assert_same_gradients(gradients(compiled, inputs), expected)
    torch.manual_seed(2)
    assert largest_error(gradients(compiled, inputs)[0], expected[0]) > 0.01


def test_a_checkpointed_transformer_in_one_graph_has_one_mask():
    model = adapted("llama", dropout=0.3)
    inputs = tokens(model) | {"use_cache": False}
    draw_layer_by_layer(model)
    torch.manual_seed(1)
    expected = gradients(model, inputs)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()  # transformers' hook would break the graph
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    assert_same_gradients(gradients(compiled, inputs), expected)


@needs_compiler
class TestInductor:
    def test_it_makes_the_mask_that_eager_makes(self):
        """Over 16 words its loop has a second round, which an overflow would derail."""
        shape = (7, 143)
        compiled = torch.compile(keep_mask, fullgraph=True, dynamic=False)
        seed, cpu = torch.tensor(2**62 + 5), torch.device("cpu")
        assert torch.equal(compiled(shape, 0.1, seed, cpu), keep_mask(shape, 0.1, seed, cpu))

    def test_its_own_random_numbers_keep_the_same_share(self):
        """By default it draws the seeds itself: other masks than in eager, which repeat as well."""
        p, shape = 0.1, (200, 500)
        compiled = torch.compile(lambda: keep_mask(shape, p, draw_seed(), torch.device("cpu")))
        torch.manual_seed(1)
        masks = [compiled() for _ in range(4)]
        deviation = (p * (1 - p) / masks[0].numel()) ** 0.5
        for mask in masks:
            assert abs(mask.float().mean().item() - (1 - p)) < 4 * deviation
        assert not torch.equal(masks[0], masks[1])
        torch.manual_seed(1)
        assert torch.equal(compiled(), masks[0])

    def test_training_with_dropout_has_the_results_of_eager(self):
        model = layers(dropout=0.1, targets=["up"]).train().up
        inputs = torch.randn(10, 8)
        torch.manual_seed(1)
        expected = gradients(model, inputs)
        # Told to take torch's random numbers it draws eager's seeds.
        with torch._inductor.config.patch(fallback_random=True):
            compiled = torch.compile(model, fullgraph=True)
            torch.manual_seed(1)
            assert_same_gradients(gradients(compiled, inputs), expected)
            assert largest_error(compiled(inputs), expected[0]) > 0.01
