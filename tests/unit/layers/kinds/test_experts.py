"""Updates of experts' stacked weights: those of a dense ΔW, on every class that is known."""

import copy
import pickle
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    adapter_rows,
    add_adapter,
    count_parameters,
    delete_adapter,
    disable_adapters,
    merge_adapters,
    set_adapter,
    unload,
    unmerge_adapters,
)
from lorakit.errors import AdapterStateError
from lorakit.layers.kinds.experts import LoraExperts, is_known_experts
from lorakit.ops import apply_keep_mask
from tiny_models import assert_untouched, gpt_oss, logits, mixtral, qwen3_moe, randomize_, snapshot
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

BOTH = ["experts.gate_up_proj", "experts.down_proj"]
CONFIG = LoraConfig(r=3, target_modules=[], target_parameters=BOTH)
TOKENS, TOP_K, EXPERTS = 11, 2, 5


CLASSES = {
    "mixtral": "MixtralExperts",
    "deepseek_v3": "DeepseekV3Experts",
    "gpt_oss": "GptOssExperts",  # stored (in, out), biases, its own gate
    "aria": "AriaExperts",  # stored (in, out)
    "nemotron_h": "NemotronHExperts",  # no gate
    "muse_spark": "MuseSparkExperts",  # a norm after each expert
}
KINDS = list(CLASSES)


def small_experts(kind):
    """Return experts of one class of transformers in float64, drawn at random."""
    experts = dict.fromkeys(("num_local_experts", "moe_num_experts", "n_routed_experts"), EXPERTS)
    widths = dict.fromkeys(("hidden_size", "moe_hidden_size"), 8)
    inner = dict.fromkeys(("intermediate_size", "moe_intermediate_size"), 6)
    others = {"moe_latent_size": None, "hidden_act": "silu", "mlp_hidden_act": "silu"}
    others |= {"swiglu_alpha": 1.7, "swiglu_limit": 7.0, "post_norm_eps": 1e-5}
    config = SimpleNamespace(
        **experts, **widths, **inner, **others, _experts_implementation="eager"
    )
    module = import_module(f"transformers.models.{kind}.modeling_{kind}")
    made = getattr(module, CLASSES[kind])(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return made.double()


class Holder(nn.Module):
    """A model that is nothing but experts."""

    def __init__(self, kind):
        super().__init__()
        self.experts = small_experts(kind)

    def forward(self, *inputs, **options):
        return self.experts(*inputs, **options)


def names_of(model):
    first = "gate_up_proj" if model.experts.has_gate else "up_proj"
    return (first, "down_proj")


def adapted(kind, names=None, name="default", **options):
    model = Holder(kind)
    config = LoraConfig(
        r=3, target_modules=[], target_parameters=names or names_of(model), **options
    )
    add_adapter(model, config, name)
    return randomize_(model)


def inputs_of(unused=()):
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(TOKENS, 8, generator=generator, dtype=torch.float64).requires_grad_()
    scores = torch.randn(TOKENS, EXPERTS, generator=generator, dtype=torch.float64)
    scores[:, list(unused)] = -torch.inf
    weights, index = scores.softmax(-1).topk(TOP_K)
    return hidden, index, weights.requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unused", [(), (0, 4)])
@pytest.mark.parametrize("which", ["both", "first", "last"])
def test_outputs_and_gradients_are_those_of_a_dense_update(kind, unused, which):
    model = Holder(kind)
    first, last = names_of(model)
    names = {"both": (first, last), "first": (first,), "last": (last,)}[which]
    model = adapted(kind, names)
    inputs, twin_inputs = inputs_of(unused), inputs_of(unused)
    found = model(*inputs)
    found.square().sum().backward()

    plain, weights, leaves = small_experts(kind), {}, {}
    for name in names:
        update = model.experts.adapted_parameters[name].updates["default"]
        A, B = (f.detach().clone().requires_grad_() for f in (update.lora_A, update.lora_B))
        leaves[name] = (A, B)
        delta = update.scaling * torch.einsum("eor,eri->eoi", B, A)
        delta = delta.transpose(1, 2) if plain.is_transposed else delta
        weights[name] = getattr(plain, name).detach() + delta
    expected = torch.func.functional_call(plain, weights, twin_inputs)
    expected.square().sum().backward()
    assert largest_error(found, expected) < TOLERANCE[torch.float64]
    assert largest_error(found, plain(*inputs)) > 1e-2
    for got, wanted in zip((inputs[0], inputs[2]), (twin_inputs[0], twin_inputs[2]), strict=True):
        assert largest_error(got.grad, wanted.grad) < GRADIENT_TOLERANCE[torch.float64]
    for name, pair in leaves.items():
        update = model.experts.adapted_parameters[name].updates["default"]
        for got, wanted in zip((update.lora_A, update.lora_B), pair, strict=True):
            assert largest_error(got.grad, wanted.grad) < GRADIENT_TOLERANCE[torch.float64]


@pytest.mark.parametrize("kind", ["gpt_oss", "nemotron_h"])
def test_gradients_are_those_of_finite_differences(kind):
    model = adapted(kind)
    hidden, index, weights = inputs_of()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    factors = [p.detach().clone().requires_grad_() for p in model.parameters() if p.requires_grad]

    def run(hidden, weights, *factors):
        ours = dict(zip(names, factors, strict=True))
        return torch.func.functional_call(model, ours, (hidden, index[:3], weights))

    cut = [tensor[:3].detach().requires_grad_() for tensor in (hidden, weights)]
    assert torch.autograd.gradcheck(run, (*cut, *factors))


def test_arguments_by_name_and_experts_of_other_processes():
    model = adapted("gpt_oss")
    hidden, index, weights = inputs_of()
    by_name = model(hidden, router_indices=index, routing_weights=weights)
    assert torch.equal(by_name, model(hidden, index, weights))
    elsewhere = index.clone()
    elsewhere[:, 1] = EXPERTS
    alone = model(hidden, index[:, :1], weights[:, :1])
    assert largest_error(model(hidden, elsewhere, weights), alone) < TOLERANCE[torch.float64]
    assert model(hidden[:0], index[:0], weights[:0]).shape == (0, 8)


@pytest.mark.parametrize("build", [mixtral, qwen3_moe, gpt_oss])
def test_a_fresh_adapter_changes_nothing_and_merging_gives_its_outputs(build):
    model, plain = build(), build()
    add_adapter(model, CONFIG)
    assert largest_error(logits(model), logits(plain)) < 5 * TOLERANCE[torch.float32]
    randomize_(model)
    found = logits(model)
    assert largest_error(found, logits(plain)) > 1e-2
    merge_adapters(model)
    assert largest_error(logits(model), found) < 5 * TOLERANCE[torch.float32]
    unmerge_adapters(model)
    assert torch.equal(logits(model), found)
    with disable_adapters(model):
        assert torch.equal(logits(model), logits(plain))


def test_merging_and_unmerging_gives_the_same_bytes_and_unloading_leaves_no_trace():
    model = mixtral().bfloat16()
    before = snapshot(model)
    add_adapter(model, CONFIG)
    randomize_(model)
    experts = model.model.layers[0].mlp.experts
    ours = experts.gate_up_proj
    merge_adapters(model)
    assert experts.gate_up_proj is not ours
    assert not torch.equal(experts.gate_up_proj, ours)
    unmerge_adapters(model)
    assert experts.gate_up_proj is ours
    unload(model)
    assert_untouched(model, before)


def test_several_adapters_add_up_and_go_one_by_one():
    model = adapted("mixtral", name="a")
    add_adapter(model, LoraConfig(r=2, target_modules=[], target_parameters=["down_proj"]), "b")
    randomize_(model, seed=8)
    inputs = inputs_of()
    set_adapter(model, ["a", "b"])
    found = model(*inputs)
    twin = copy.deepcopy(model)
    merge_adapters(twin)
    assert largest_error(found, twin(*inputs)) < TOLERANCE[torch.float64]
    set_adapter(model, "b")
    delete_adapter(model, "a")
    assert list(model.experts.adapted_parameters) == ["down_proj"]
    assert isinstance(model.experts, LoraExperts)
    set_adapter(model, None)
    delete_adapter(model, "b")
    assert type(model.experts) is type(small_experts("mixtral"))


def test_dropout_drops_other_elements_for_each_expert(monkeypatch):
    model = adapted("mixtral", ["gate_up_proj"], lora_dropout=0.5).train()
    seeds = {expert: torch.tensor(100 + expert) for expert in range(EXPERTS)}
    given = iter(seeds.values())
    monkeypatch.setattr("lorakit.layers.kinds.experts.draw_seed", lambda: next(given))
    hidden, index, weights = inputs_of()
    found = model(hidden, index, weights)
    update = model.experts.adapted_parameters["gate_up_proj"].updates["default"]
    plain, expected = small_experts("mixtral"), torch.zeros(TOKENS, 8, dtype=torch.float64)
    for expert in range(EXPERTS):
        rows, place = torch.where(index == expert)
        x = hidden[rows].detach()
        dropped = apply_keep_mask(x, 0.5, seeds[expert])
        h = x @ plain.gate_up_proj[expert].T
        h = h + update.scaling * dropped @ update.lora_A[expert].T @ update.lora_B[expert].T
        gate, up = h.chunk(2, -1)
        h = (plain.act_fn(gate) * up) @ plain.down_proj[expert].T
        expected.index_add_(0, rows, (h * weights[rows, place, None]).detach())
    assert largest_error(found, expected) < TOLERANCE[torch.float64]


def test_copies_and_pickles_carry_the_updates_and_are_independent():
    model = adapted("gpt_oss")
    inputs = inputs_of()
    expected = model(*inputs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*inputs), expected)
        merge_adapters(other)
        assert other.experts.down_proj is not model.experts.down_proj
        unmerge_adapters(other)
        unload(other)
        assert type(other.experts) is type(small_experts("gpt_oss"))
    assert torch.equal(model(*inputs), expected)
    assert len(list(model.parameters())) == 4 + 4


def test_checkpointing_repeats_the_routing():
    model = mixtral()
    add_adapter(model, CONFIG)
    randomize_(model)
    model.train()
    ids = torch.arange(8).view(1, 8)

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        model(input_ids=ids).logits.square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    expected = gradients()
    model.activation_checkpointing_enable()
    for got, wanted in zip(gradients(), expected, strict=True):
        assert largest_error(got, wanted) < 1e-5


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_autocast_and_a_base_of_16_bits(kind):
    hidden, index, weights = inputs_of()
    exact = adapted(kind)(hidden, index, weights)
    inputs = (hidden.float(), index, weights.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = adapted(kind).float()(*inputs)
    assert cast.dtype == torch.float32
    assert largest_error(cast, exact) < 4 * TOLERANCE[torch.bfloat16]
    half = Holder(kind).bfloat16()
    add_adapter(half, LoraConfig(r=3, target_modules=[], target_parameters=names_of(half)))
    update = half.experts.adapted_parameters["down_proj"].updates["default"]
    assert update.lora_A.dtype == torch.float32
    found = randomize_(half)(hidden.bfloat16(), index, weights.float())
    assert found.dtype == torch.bfloat16
    assert largest_error(found, exact) < 4 * TOLERANCE[torch.bfloat16]


def test_rows_with_adapters_of_experts_are_refused_and_others_pass():
    model = mixtral()
    add_adapter(model, CONFIG, "experts")
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"]), "attention")
    randomize_(model)
    ids = torch.arange(12).view(2, 6)
    with adapter_rows(model, ["attention", None]):
        mixed = model(input_ids=ids).logits
    set_adapter(model, "attention")
    assert largest_error(mixed[0], model(input_ids=ids).logits[0]) < 1e-5
    with (
        adapter_rows(model, ["experts", "attention"]),
        pytest.raises(AdapterStateError, match="'experts' updates experts, which see tokens"),
    ):
        model(input_ids=ids)


def test_counting_knows_stacked_factors():
    model = mixtral()
    base = sum(p.numel() for p in model.parameters())
    injection = add_adapter(model, CONFIG)
    count = count_parameters(model)
    assert count.base == base
    assert count.lora == count.trainable == injection.lora_parameters
    # 2 layers of 4 experts: r (in + out) for both weights.
    assert count.lora == 2 * 4 * 3 * ((16 + 48) + (24 + 16))


def test_classes_of_the_convention_are_known_and_no_others():
    assert all(is_known_experts(small_experts(kind)) for kind in KINDS)
    assert not is_known_experts(nn.Linear(2, 2))


@pytest.mark.parametrize("initialization", [True, False, "gaussian", "orthogonal"])
def test_each_expert_is_initialized_as_a_layer_of_its_own(initialization):
    model = Holder("mixtral")
    config = LoraConfig(
        r=4,
        target_modules=[],
        target_parameters=["gate_up_proj"],
        init_lora_weights=initialization,
    )
    add_adapter(model, config)
    update = model.experts.adapted_parameters["gate_up_proj"].updates["default"]
    A, B = update.saved_factors()
    layer = nn.Sequential(nn.Linear(8, 12, bias=False)).double()
    add_adapter(layer, LoraConfig(r=4, init_lora_weights=initialization))
    one = layer[0].updates["default"]
    assert torch.all(update.delta_weight() == 0) == torch.all(one.delta_weight() == 0)
    for stacked, single in ((A, one.lora_A), (B, one.lora_B)):
        assert 0.5 * single.std() <= stacked.std() <= 1.5 * single.std()
        assert all(not torch.equal(stacked[0], rest) for rest in stacked[1:]) or single.std() == 0
    if initialization == "orthogonal":
        assert largest_error(B @ A + 1, torch.ones(EXPERTS, 12, 8)) < 1e-12


@pytest.mark.parametrize("trained_first", [False, True])
@pytest.mark.parametrize("head", ["mlp", "experts"])
def test_another_adapter_trains_the_experts_in_full(trained_first, head):
    model, base = mixtral(), logits(mixtral())
    whole = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=[head])
    configs = {"stacked": CONFIG, "whole": whole}
    for name in sorted(configs, reverse=trained_first):
        add_adapter(model, configs[name], name)
        if name == "stacked":
            randomize_(model)
    set_adapter(model, "stacked")
    found = logits(model)
    assert largest_error(found, base) > 1e-2
    set_adapter(model, "whole")
    assert largest_error(logits(model), base) < 5 * TOLERANCE[torch.float32]
    copied = model.model.layers[0].get_submodule(f"mlp{'.experts' * (head == 'experts')}")
    assert not any("lora_" in name for name, _ in copied.trained_copies.named_parameters())
    set_adapter(model, "stacked")
    delete_adapter(model, "whole")
    assert torch.equal(logits(model), found)
    set_adapter(model, None)
    delete_adapter(model, "stacked")
    assert type(model.model.layers[0].mlp.experts) is type(mixtral().model.layers[0].mlp.experts)


def test_experts_that_accelerate_loads_for_each_pass():
    accelerate = pytest.importorskip("accelerate")
    model = mixtral()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.model.layers[0].mlp.experts.down_proj.is_meta
    here = mixtral()
    add_adapter(here, CONFIG)
    add_adapter(model, Adapter.from_model(randomize_(here)))
    assert torch.equal(logits(model), logits(here))
    with pytest.raises(AdapterStateError, match=r"experts\.gate_up_proj: accelerate offloads"):
        merge_adapters(model)
