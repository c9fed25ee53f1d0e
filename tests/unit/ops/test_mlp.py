"""The MLP node against the same formula in differentiable operations of torch."""

import math

import pytest
import torch
from torch.nn import functional as F

from fixtures.matrices import leaves_of
from lorakit.errors import DtypeError, ShapeError
from lorakit.ops import (
    LinearOperands,
    LowRankTerm,
    apply_keep_mask,
    linear_group,
    low_rank_mlp,
)
from tolerances import TOLERANCE, largest_error

IN, HIDDEN, OUT = 6, 10, 5
SEEDS = torch.tensor(3), torch.tensor(2**62 + 9)
ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
KINDS = {"gated": 2, "single": 1}
# Three products in a row, an activation and a product with the gate, of which each rounds once.
MLP_TOLERANCE = {dtype: 6 * tolerance for dtype, tolerance in TOLERANCE.items()}


@pytest.fixture(params=KINDS)
def inner_layers(request):
    return KINDS[request.param]


def operands(inner=2, shape=(4,), p=0.0, bias=True, adapted=(0, 1, 2), dtype=torch.float64):
    """Return x, the inner layers and down; `adapted` are the layers with terms, down the last.

    The inner layers share a mask, as they read the same activation; down has its own.
    """
    torch.manual_seed(0)
    x = torch.randn(*shape, IN, dtype=dtype)
    layers = []
    for number, (out, inside) in enumerate([(HIDDEN, IN)] * inner + [(OUT, HIDDEN)]):
        is_down = number == inner
        terms = [
            LowRankTerm(
                torch.randn(r, inside, dtype=dtype) / inside**0.5,
                torch.randn(out, r, dtype=dtype) / 2,
                *(0.5 + number, p, SEEDS[is_down] if p else None),
            )
            for r in ((number + 1, 2) if number == 0 else (number + 1,))
        ]
        W0 = torch.randn(out, inside, dtype=dtype) / inside**0.5
        own_bias = torch.randn(out, dtype=dtype) if bias else None
        position = 2 if is_down else number
        layers.append(LinearOperands(W0, own_bias, terms if position in adapted else []))
    return x, layers


def fused(x, layers, activation):
    *inner, down = layers
    return low_rank_mlp(x, inner, down, activation)


def reference(x, layers, activation):
    def linear(x, layer):
        h = F.linear(x, layer.W0, layer.bias)
        for A, B, scaling, p, seed, _ in layer.terms:
            seen = apply_keep_mask(x, p, seed) if p else x
            h = h + scaling * (seen @ A.T) @ B.T
        return h

    *inner, down = layers
    z = ACTIVATIONS[activation](linear(x, inner[0]))
    return linear(z if len(inner) == 1 else z * linear(x, inner[1]), down)


def gradients(function, x, layers, wanted=None, activation="silu"):
    leaves = leaves_of(x, layers)
    for name, leaf in leaves.items():
        leaf.grad = None
        leaf.requires_grad_(wanted is None or name in wanted)
    output = function(x, layers, activation)
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape, dtype=torch.float64).to(output.dtype))
    return output, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def assert_same(got, expected, tolerance=1e-12):
    assert largest_error(got[0], expected[0]) <= tolerance
    assert list(got[1]) == list(expected[1])
    for name, gradient in expected[1].items():
        assert largest_error(got[1][name], gradient) <= 2 * tolerance, name


def saved_by(function, x, layers):
    """Return what a call saves besides weights and factors."""
    saved = []
    parameters = {t.data_ptr() for name, t in leaves_of(x, layers).items() if name != "x"}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        function(x, layers, "silu")
    return [t for t in saved if t.data_ptr() not in parameters]


def train_factors(x, layers):
    """Let x and the factors require gradients, as in LoRA."""
    for name, leaf in leaves_of(x, layers).items():
        leaf.requires_grad_(name[0] in "xAB")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_all_gradients(inner_layers, activation, p, bias):
    x, layers = operands(inner_layers, p=p, bias=bias)
    got = gradients(fused, x, layers, activation=activation)
    assert_same(got, gradients(reference, x, layers, activation=activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck(inner_layers, activation, p):
    x, layers = operands(inner_layers, shape=(3,), p=p)
    train_factors(x, layers)
    inputs = tuple(t for t in leaves_of(x, layers).values() if t.requires_grad)
    # The operands are the very leaves that gradcheck moves.
    assert torch.autograd.gradcheck(lambda *_: fused(x, layers, activation), inputs)


@pytest.mark.parametrize("shape", [(2, 3), (1,), (0,), (2, 0), ()], ids=str)
def test_every_shape(inner_layers, shape):
    x, layers = operands(inner_layers, shape, p=0.4)
    got = gradients(fused, x, layers)
    assert got[0].shape == (*shape, OUT)
    assert_same(got, gradients(reference, x, layers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_every_dtype(inner_layers, dtype, p):
    x, layers = operands(inner_layers, (20,), p, dtype=dtype)
    wide = [t.detach().double() for t in leaves_of(x, layers).values()]
    got = gradients(fused, x, layers)
    assert got[0].dtype == dtype and all(g.dtype == dtype for g in got[1].values())
    exact, exact_layers = operands(inner_layers, (20,), p)
    for leaf, value in zip(leaves_of(exact, exact_layers).values(), wide, strict=True):
        leaf.copy_(value)
    assert_same(got, gradients(reference, exact, exact_layers), MLP_TOLERANCE[dtype])


@pytest.mark.parametrize("adapted", [(), (0,), (1,), (2,), (0, 1), (0, 2)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_layers_without_terms(inner_layers, adapted, p):
    x, layers = operands(inner_layers, p=p, adapted=adapted)
    assert_same(gradients(fused, x, layers), gradients(reference, x, layers))


WANTED = {
    "factors, x frozen": ["A 0 0", "B 0 0", "A 0 1", "B 0 1", "A 1 0", "B 1 0", "A 2 0", "B 2 0"],
    "x alone": ["x"],
    "down's factors alone": ["A 2 0", "B 2 0"],
    "one inner A": ["A 1 0"],
    "one inner B": ["B 0 1"],
    "down's weight": ["W0 2"],
    "an inner bias": ["bias 1"],
}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_only_the_gradients_asked_for_come_back(wanted, p):
    x, layers = operands(p=p)
    got = gradients(fused, x, layers, wanted)
    assert set(got[1]) == set(wanted)
    assert_same(got, gradients(reference, x, layers, wanted))


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_saves_neither_the_activation_s_output_nor_the_input_of_down(inner_layers, p):
    x, layers = operands(inner_layers, (40,), p)
    train_factors(x, layers)
    ours = saved_by(fused, x, layers)
    inner_ranks = sum(term.A.shape[0] for layer in layers[:-1] for term in layer.terms)
    down_rank = layers[-1].terms[0].A.shape[0]
    seeds = [1, 1] if p else []
    expected = [x.numel(), *[40 * HIDDEN] * inner_layers, 40 * inner_ranks, 40 * down_rank]
    assert sorted(t.numel() for t in ours) == sorted([*seeds, *expected])
    assert sum(t.data_ptr() == x.data_ptr() for t in ours) == 1
    gate = F.linear(x, layers[0].W0, layers[0].bias)
    for A, B, scaling, _, seed, _ in layers[0].terms:
        gate = gate + scaling * (apply_keep_mask(x, p, seed) if p else x) @ A.T @ B.T
    wide = [t for t in ours if t.shape[-1:] == (HIDDEN,)]
    assert largest_error(wide[0], gate) < 1e-12
    acted = F.silu(gate)
    assert all(largest_error(t, acted) > 0.1 for t in wide)


def test_saves_less_than_its_parts():
    x, layers = operands(2, (40,))
    train_factors(x, layers)
    wide = {
        function: {t.data_ptr() for t in saved_by(function, x, layers) if t.shape[-1:] == (HIDDEN,)}
        for function in (fused, reference)
    }
    assert len(wide[fused]) == 2 and len(wide[reference]) == 4


@pytest.mark.parametrize("backward_inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_autocast(inner_layers, backward_inside, p):
    x, layers = operands(inner_layers, (20,), p, dtype=torch.float32)
    expected = gradients(reference, x, layers)
    leaves = leaves_of(x, layers)
    for leaf in leaves.values():
        leaf.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = fused(x, layers, "silu")
        torch.manual_seed(1)
        grad = torch.randn(output.shape, dtype=torch.float64).to(torch.bfloat16)
        if backward_inside:
            output.backward(grad)
    if not backward_inside:
        output.backward(grad)
    assert output.dtype == torch.bfloat16
    got = output, {name: leaf.grad for name, leaf in leaves.items()}
    assert all(gradient.dtype == torch.float32 for gradient in got[1].values())
    assert_same(got, expected, MLP_TOLERANCE[torch.bfloat16])


def test_backward_under_autocast_of_a_forward_without_it(inner_layers):
    x, layers = operands(inner_layers, dtype=torch.float32)
    expected = gradients(reference, x, layers)

    def plain_forward(x, layers, activation):
        with torch.autocast("cpu", enabled=False):
            return fused(x, layers, activation)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(gradients(plain_forward, x, layers), expected, MLP_TOLERANCE[torch.float32])


def test_both_bracketings_agree(inner_layers, monkeypatch):
    x, layers = operands(inner_layers)
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", math.inf)
    apart = gradients(fused, x, layers)
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", 0)
    assert_same(gradients(fused, x, layers), apart)
    assert_same(apart, gradients(reference, x, layers))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_touches_nothing_and_may_be_repeated(inner_layers, activation):
    x, layers = operands(inner_layers, p=0.4)
    leaves = [leaf.requires_grad_() for leaf in leaves_of(x, layers).values()]
    before = [leaf.detach().clone() for leaf in leaves]
    output = fused(x, layers, activation)
    grad = torch.randn_like(output)
    given = grad.clone()
    first = torch.autograd.grad(output, leaves, grad, retain_graph=True)
    again = torch.autograd.grad(output, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))
    assert torch.equal(grad, given)


def test_transposed_weights_do_as_well():
    x, layers = operands(1)
    expected = gradients(reference, x, layers)
    stored = [layer._replace(W0=layer.W0.detach().t().contiguous().t()) for layer in layers]
    assert not stored[0].W0.is_contiguous()
    assert_same(gradients(fused, x, stored), expected)


def test_without_gradients(inner_layers):
    x, layers = operands(inner_layers, p=0.4)
    train_factors(x, layers)
    with torch.no_grad():
        output = fused(x, layers, "gelu")
        assert not output.requires_grad
        assert largest_error(output, reference(x, layers, "gelu")) <= 1e-12


def test_the_output_may_be_changed_in_place(inner_layers):
    x, layers = operands(inner_layers, (2, 3))
    train_factors(x, layers)

    def changed(function):
        return lambda *arguments: F.relu(function(*arguments), inplace=True)

    assert_same(gradients(changed(fused), x, layers), gradients(changed(reference), x, layers))


def test_operands_that_do_not_fit_are_named():
    x, (gate, up, down) = operands()
    narrow = LinearOperands(torch.zeros(OUT, HIDDEN + 1, dtype=torch.float64), None, [])
    with pytest.raises(ShapeError, match=r"has shape \(4, 10\).*to be 11"):
        low_rank_mlp(x, [gate, up], narrow, "silu")
    with pytest.raises(ShapeError, match=r"has shape \(4, 5\).*to be 6"):
        low_rank_mlp(x[:, 1:], [gate, up], down, "silu")
    with pytest.raises(DtypeError, match=r"torch.float64 but its weight is torch.float32"):
        low_rank_mlp(x, [gate, up], down._replace(W0=down.W0.float()), "silu")
