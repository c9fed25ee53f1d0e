"""An adapted nn.MultiheadAttention: in every setting what torch makes of merged weights."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from lorakit import (
    LoraConfig,
    adapter_rows,
    add_adapter,
    delete_adapter,
    disable_adapters,
    merge_adapters,
    set_adapter,
    unload,
    unmerge_adapters,
)
from lorakit.errors import ShapeError, TargetError
from lorakit.layers.kinds.attention import LoraMultiheadAttention
from lorakit.ops import apply_keep_mask, low_rank_linear
from tiny_models import Encoder, assert_untouched, randomize_, snapshot, tokens
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

EMBED, HEADS, ROWS, LENGTH, SOURCE = 8, 2, 3, 5, 4


class Attention(nn.Module):
    """One attention with the settings of a test, beside which nothing is adapted."""

    def __init__(self, dtype=torch.float64, **options):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(EMBED, HEADS, dtype=dtype, **options)
        with torch.no_grad():
            for parameter in self.attention.parameters():
                parameter.normal_(std=0.5)

    def forward(self, *inputs, **options):
        return self.attention(*inputs, **options)


def adapted(randomized=True, name="default", config=None, **options):
    model = Attention(**options)
    add_adapter(model, config or LoraConfig(r=2, target_modules=["attention"]), name)
    return randomize_(model) if randomized else model


def dense_twin(model):
    """Return the attention with its updates multiplied out into plain weights."""
    twin = copy.deepcopy(model)
    merge_adapters(twin)
    return twin


def inputs_of(kind, batch_first, batched=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)

    def draw(length):
        shape = (ROWS, length, EMBED) if batch_first else (length, ROWS, EMBED)
        return torch.randn(
            shape if batched else (length, EMBED), generator=generator, dtype=dtype
        ).requires_grad_()

    query, key, value = draw(LENGTH), draw(SOURCE), draw(SOURCE)
    return {"self": (query,) * 3, "cross": (query, key, key), "apart": (query, key, value)}[kind]


def masks_of(kind, source, batched=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    padding = torch.zeros(*((ROWS,) if batched else ()), source, dtype=torch.bool)
    padding[..., -1] = True
    causal = torch.ones(LENGTH, source).triu(1).bool()
    floating = torch.randn(LENGTH, source, generator=generator, dtype=dtype)
    by_head = torch.rand((ROWS if batched else 1) * HEADS, LENGTH, source, generator=generator)
    by_head = by_head > 0.7
    by_head[..., 0] = False
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "causal": {"attn_mask": causal},
        "hinted": {"attn_mask": causal, "is_causal": True},
        "float": {"attn_mask": floating},
        "by head": {"attn_mask": by_head},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
    }[kind]


OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "extended": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    "bias_kv": {"add_bias_kv": True},
}
MASKS = ("none", "padding", "causal", "hinted", "float", "by head", "both")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["self", "cross", "apart"])
@pytest.mark.parametrize("mask", MASKS)
def test_outputs_weights_and_gradients_are_those_of_torch_with_merged_weights(options, kind, mask):
    settings = OPTIONS[options]
    model = adapted(**settings)
    twin = dense_twin(model)
    for batched, need_weights, average in itertools.product((True, False), repeat=3):
        inputs = inputs_of(kind, settings.get("batch_first", False), batched)
        source = inputs[1].shape[-2 if settings.get("batch_first") or not batched else 0]
        arguments = masks_of(mask, source, batched)
        arguments |= {"need_weights": need_weights, "average_attn_weights": average}
        found, expected = (one(*inputs, **arguments) for one in (model, twin))
        assert largest_error(found[0], expected[0]) < TOLERANCE[torch.float64]
        assert (found[1] is None) == (expected[1] is None)
        if expected[1] is not None:
            assert largest_error(found[1], expected[1]) < TOLERANCE[torch.float64]
        gradients = [
            torch.autograd.grad(out.square().sum(), list(dict.fromkeys(inputs)))
            for out, _ in (found, expected)
        ]
        for got, wanted in zip(*gradients, strict=True):
            assert largest_error(got, wanted) < GRADIENT_TOLERANCE[torch.float64]


@pytest.mark.parametrize("kind", ["self", "cross", "apart"])
def test_gradients_of_the_factors_are_those_of_a_dense_update(kind):
    model = adapted()
    inputs = inputs_of(kind, False)
    model(*inputs)[0].square().sum().backward()
    attention = model.attention
    leaves, weights = {}, {}
    for name, layer in (("in_proj_weight", attention), ("out_proj.weight", attention.out_proj)):
        update = layer.updates["default"]
        leaves[name] = [f.detach().clone().requires_grad_() for f in (update.lora_A, update.lora_B)]
        A, B = leaves[name]
        weights[name] = layer.weight.detach() + update.scaling * B @ A
    plain = Attention().attention
    dense = torch.func.functional_call(plain, weights, inputs)
    dense[0].square().sum().backward()
    for name, layer in (("in_proj_weight", attention), ("out_proj.weight", attention.out_proj)):
        update = layer.updates["default"]
        for got, wanted in zip((update.lora_A, update.lora_B), leaves[name], strict=True):
            assert largest_error(got.grad, wanted.grad) < GRADIENT_TOLERANCE[torch.float64]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_an_update_of_zero_changes_nothing_attention_dropout_included(training, need_weights):
    plain = Attention(dropout=0.3, batch_first=True).train(training)
    model = adapted(randomized=False, dropout=0.3, batch_first=True).train(training)
    found = []
    for one in (plain, model):
        torch.manual_seed(5)
        found.append(one(*inputs_of("self", True), need_weights=need_weights))
    assert largest_error(found[1][0], found[0][0]) < TOLERANCE[torch.float64]
    if need_weights:
        assert largest_error(found[1][1], found[0][1]) < TOLERANCE[torch.float64]


def test_lora_dropout_acts_on_the_low_rank_path_alone(monkeypatch):
    config = LoraConfig(r=2, target_modules=["attention"], lora_dropout=0.5)
    model = adapted(config=config).train()
    seeds = [torch.tensor(7), torch.tensor(11), torch.tensor(13)]
    given = iter(seeds)
    monkeypatch.setattr("lorakit.layers.updates.low_rank_update.draw_seed", lambda: next(given))
    (x, *_) = inputs_of("self", False)
    found = model(x, x, x, need_weights=False)[0]
    attention = model.attention
    update = attention.updates["default"]
    dropped = apply_keep_mask(x.detach(), 0.5, seeds[0])
    projected = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    projected = projected + update.scaling * dropped @ update.lora_A.T @ update.lora_B.T
    q, k, v = (
        part.view(LENGTH, ROWS, HEADS, -1).permute(1, 2, 0, 3) for part in projected.chunk(3, -1)
    )
    attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = attention.out_proj
    update = out.updates["default"]
    dropped = apply_keep_mask(attended.detach(), 0.5, seeds[1])
    expected = nn.functional.linear(attended, out.weight, out.bias)
    expected = expected + update.scaling * dropped @ update.lora_A.T @ update.lora_B.T
    assert largest_error(found, expected.transpose(0, 1)) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("kind,activations", [("self", 1), ("cross", 2), ("apart", 3)])
def test_each_activation_has_a_mask_of_its_own(kind, activations, monkeypatch):
    config = LoraConfig(r=2, target_modules=["attention"], lora_dropout=0.5)
    model = adapted(config=config).train()
    seeds = []

    def looked_at(x, W0, bias, terms):
        seeds.extend(int(term.seed) for term in terms)
        return low_rank_linear(x, W0, bias, terms)

    monkeypatch.setattr("lorakit.layers.kinds.attention.low_rank_linear", looked_at)
    model(*inputs_of(kind, False))
    assert len(set(seeds)) == len(seeds) == activations


def test_several_adapters_add_up_and_switch():
    model = adapted(name="a")
    add_adapter(model, LoraConfig(r=3, target_modules=["attention"]), "b")
    randomize_(model, seed=9)
    inputs = inputs_of("self", False)
    plain = Attention()
    set_adapter(model, ["a", "b"])
    assert largest_error(model(*inputs)[0], dense_twin(model)(*inputs)[0]) < 1e-12
    with disable_adapters(model):
        assert torch.equal(model(*inputs)[0], plain(*inputs)[0])
    set_adapter(model, "b")
    delete_adapter(model, "a")
    assert type(model.attention) is LoraMultiheadAttention
    assert not torch.equal(model(*inputs)[0], plain(*inputs)[0])


def test_merging_and_unmerging_gives_the_same_bytes_and_unloading_leaves_no_trace():
    model = Attention(dtype=torch.bfloat16)
    before = snapshot(model)
    add_adapter(model, LoraConfig(r=2, target_modules=["attention"]))
    randomize_(model)
    weights = [model.attention.in_proj_weight, model.attention.out_proj.weight]
    bytes_before = [weight.clone() for weight in weights]
    merge_adapters(model)
    assert model.attention.in_proj_weight is not weights[0]
    unmerge_adapters(model)
    assert model.attention.in_proj_weight is weights[0]
    assert model.attention.out_proj.weight is weights[1]
    assert all(torch.equal(w, b) for w, b in zip(weights, bytes_before, strict=True))
    unload(model)
    assert_untouched(model, before)


@pytest.mark.parametrize("kind", ["self", "cross", "apart"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_rows_with_adapters_of_their_own(kind, batch_first):
    model = adapted(name="a", batch_first=batch_first)
    add_adapter(model, LoraConfig(r=3, target_modules=["attention"]), "b")
    randomize_(model, seed=9)
    inputs = inputs_of(kind, batch_first)
    names = ["b", None, "a"]
    with adapter_rows(model, names):
        mixed = model(*inputs, need_weights=False)[0]
    for row, name in enumerate(names):
        set_adapter(model, name)
        alone = model(*inputs, need_weights=False)[0]
        pick = (lambda x, row=row: x[row]) if batch_first else (lambda x, row=row: x[:, row])
        assert largest_error(pick(mixed), pick(alone)) < TOLERANCE[torch.float64]


def test_copies_and_pickles_carry_the_updates():
    model = adapted()
    inputs = inputs_of("self", False)
    expected = model(*inputs)[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*inputs)[0], expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("targets", [["self_attn"], ["linear1"], ["linear2", "self_attn"]])
def test_torch_s_fast_path_through_encoder_layers_skips_no_update(gradients, padded, targets):
    model, plain = Encoder(), Encoder()
    add_adapter(model, LoraConfig(r=2, target_modules=targets), trainable=gradients)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    inputs = tokens()
    inputs["attention_mask"][0, 4:] = 0 if padded else 1
    with torch.set_grad_enabled(gradients):
        found, base = model(**inputs), plain(**inputs)
        merge_adapters(model)
        merged = model(**inputs)
    seen = inputs["attention_mask"].bool()
    assert largest_error(found[seen], merged[seen]) < 10 * TOLERANCE[torch.float32]
    assert largest_error(found[seen], base[seen]) > 1e-2


def test_encoder_layers_without_adapters_keep_their_fast_path():
    model = Encoder()
    before = snapshot(model)
    add_adapter(model, LoraConfig(r=2, target_modules=["layers.0.self_attn"]), "a")
    layers = model.encoder.layers
    assert (layers[0].activation_relu_or_gelu, layers[1].activation_relu_or_gelu) == (0, 1)
    assert not model.encoder.use_nested_tensor
    add_adapter(model, LoraConfig(r=2, target_modules=["layers.1.self_attn"]), "b")
    delete_adapter(model, "a")
    assert (layers[0].activation_relu_or_gelu, layers[1].activation_relu_or_gelu) == (1, 0)
    unload(model)
    assert_untouched(model, before)


def test_autocast_runs_in_its_dtype():
    model = adapted(dtype=torch.float32)
    inputs = inputs_of("self", False, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(*inputs, need_weights=False)[0]
        expected = dense_twin(model)(*inputs, need_weights=False)[0]
    assert found.dtype == expected.dtype == torch.bfloat16
    assert largest_error(found, expected) < 2 * TOLERANCE[torch.bfloat16]


def test_all_linear_takes_both_projections():
    model = Attention()
    injection = add_adapter(model, LoraConfig(r=2))
    assert [match.path for match in injection.matches] == ["attention", "attention.out_proj"]
    assert [match.out_features for match in injection.matches] == [3 * EMBED, EMBED]
    assert injection.config.target_modules == ("attention",)


def test_the_output_projection_has_the_attention_s_rank_and_twice_its_alpha():
    model = Encoder()
    patterns = {"rank_pattern": {"layers.0.self_attn": 4}, "alpha_pattern": {"self_attn": 6}}
    injection = add_adapter(model, LoraConfig(r=2, target_modules=["self_attn"], **patterns))
    found = [(match.r, match.scaling) for match in injection.matches]
    assert found == [(4, 1.5), (4, 3.0), (2, 3.0), (2, 6.0)]


def test_an_output_projection_is_not_adapted_alone():
    model = Encoder()
    before = snapshot(model)
    with pytest.raises(TargetError, match=r"out_proj: nn\.Multi.* reads its weight"):
        add_adapter(model, LoraConfig(r=2, target_modules=["out_proj"]))
    assert_untouched(model, before)
    # Named beside its attention it is what the attention brings along.
    add_adapter(model, LoraConfig(r=2, target_modules=r".*self_attn(\.out_proj)?"))
    with pytest.raises(TargetError, match="reads its weight without calling it"):
        add_adapter(model, LoraConfig(r=2, target_modules=["out_proj"]), "other")


def test_three_input_projections_and_magnitudes_are_refused():
    with pytest.raises(TargetError, match="kdim or vdim differs"):
        adapted(kdim=6)
    with pytest.raises(TargetError, match="attention with use_dora=True"):
        adapted(config=LoraConfig(r=2, target_modules=["attention"], use_dora=True))


def test_masks_and_inputs_that_do_not_fit_are_named():
    model = adapted()
    inputs = inputs_of("self", False)
    with pytest.raises(ShapeError, match=r"got shape \(2, 2\), expected \(5, 5\) or \(6, 5, 5\)"):
        model(*inputs, attn_mask=torch.zeros(2, 2))
    with pytest.raises(ShapeError, match="is_causal=True without attn_mask"):
        model(*inputs, is_causal=True)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"bias": "all"}, "bias='all' would train the bias of .*out_proj"),
        ({"modules_to_save": ["out_proj"]}, "out_proj: nn.Multi.* reads its weight without"),
    ],
)
def test_what_would_train_an_output_projection_that_is_not_called_is_refused(options, message):
    model = Encoder()
    before = snapshot(model)
    with pytest.raises(TargetError, match=message):
        add_adapter(model, LoraConfig(r=2, target_modules=["linear1"], **options))
    assert_untouched(model, before)


def test_an_attention_trained_in_full_acts_on_the_fast_path_too():
    model = Encoder()
    add_adapter(
        model, LoraConfig(r=2, target_modules=["linear1"], modules_to_save=["layers.0.self_attn"])
    )
    inputs = tokens()
    with torch.no_grad():
        before = model(**inputs)
        copied = model.encoder.layers[0].self_attn.trained_copies["default"]
        copied.in_proj_weight.mul_(2)
        assert largest_error(model(**inputs), before) > 1e-3
