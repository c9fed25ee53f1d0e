"""Several adapted layers on one activation, against as many layers on their own."""

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
    low_rank_linears,
    skinny,
)
from lorakit.ops.operands import LinearNeeds, TermGradients, TermNeeds
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

IN = 6
SEEDS = torch.tensor(11), torch.tensor(2**61 + 5)

# A layer is (out, has a bias, terms); a term is (r, scaling, p, number of the seed or None).
GROUPS = {
    "one layer": [(5, True, [(2, 0.5, 0, None)])],
    "three layers": [(5, True, [(2, 0.5, 0, None)])] * 3,
    "ranks and sizes differ": [
        (5, True, [(2, 0.5, 0, None)]),
        (3, False, [(4, 2.0, 0, None)]),
        (8, True, [(1, 1.0, 0, None)]),
    ],
    "two terms in one layer": [
        (5, True, [(2, 0.5, 0, None), (3, 1.5, 0, None)]),
        (3, True, [(1, 2.0, 0, None)]),
    ],
    "a layer without terms": [(5, True, []), (3, True, [(2, 2.0, 0, None)])],
    "one mask": [(5, True, [(2, 0.5, 0.4, 0)]), (3, False, [(3, 2.0, 0.4, 0)])],
    "two masks": [(5, True, [(2, 0.5, 0.4, 0)]), (3, True, [(3, 2.0, 0.4, 1)])],
    "one seed, p differs": [(5, True, [(2, 0.5, 0.4, 0)]), (3, True, [(3, 2.0, 0.2, 0)])],
    "stacks in turn": [
        (5, True, [(2, 0.5, 0.4, 0), (1, 1.0, 0.4, 1)]),
        (3, True, [(3, 2.0, 0.4, 1), (2, 0.3, 0, None)]),
        (4, True, [(1, 1.0, 0.4, 0)]),
    ],
    "p = 0 with a seed": [(5, True, [(2, 0.5, 0.0, 0)]), (3, True, [(3, 2.0, 0.4, 0)])],
}
UNDROPPED = [n for n, layers in GROUPS.items() if not any(t[2] for _, _, ts in layers for t in ts)]


def operands(group, *shape, dtype=torch.float64, factor_dtype=None):
    """Return x of `shape` and the operands of a group, all of a size near one."""
    torch.manual_seed(0)
    x = torch.randn(*(shape or (4,)), IN, dtype=dtype)
    layers = []
    for out, has_bias, terms in GROUPS[group]:
        W0 = torch.randn(out, IN, dtype=dtype) / IN**0.5
        bias = torch.randn(out, dtype=dtype) if has_bias else None
        made = [
            LowRankTerm(
                torch.randn(r, IN, dtype=factor_dtype or dtype) / IN**0.5,
                torch.randn(out, r, dtype=factor_dtype or dtype),
                *(scaling, p, None if number is None else SEEDS[number]),
            )
            for r, scaling, p, number in terms
        ]
        layers.append(LinearOperands(W0, bias, made))
    return x, layers


def widened(layer):
    """Return a layer's operands in float64, as separate leaves."""
    terms = [t._replace(A=t.A.detach().double(), B=t.B.detach().double()) for t in layer.terms]
    bias = None if layer.bias is None else layer.bias.detach().double()
    return LinearOperands(layer.W0.detach().double(), bias, terms)


def reference(x, layers):
    """Compute the layers one by one with differentiable operations of torch."""
    outputs = []
    for W0, bias, terms in layers:
        h = F.linear(x, W0, bias)
        for A, B, scaling, p, seed, _ in terms:
            seen = apply_keep_mask(x, p, seed) if p else x
            h = h + scaling * (seen @ A.T) @ B.T
        outputs.append(h)
    return outputs


def gradients(function, x, layers, wanted, used=None):
    """Return outputs and gradients of the wanted leaves; `used` are the outputs in the loss."""
    leaves = leaves_of(x, layers)
    for name, leaf in leaves.items():
        leaf.grad = None
        leaf.requires_grad_(name in wanted)
    outputs = function(x, layers)
    torch.manual_seed(1)
    weights = [torch.randn(h.shape, dtype=torch.float64).to(h.dtype) for h in outputs]
    used = range(len(outputs)) if used is None else used
    sum((outputs[i] * weights[i]).sum() for i in used).backward()
    return outputs, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def assert_same(got, expected, tolerance=1e-12):
    (hs, grads), (expected_hs, expected_grads) = got, expected
    for h, expected_h in zip(hs, expected_hs, strict=True):
        assert largest_error(h, expected_h) <= tolerance
    assert list(grads) == list(expected_grads)
    for name, gradient in expected_grads.items():
        assert largest_error(grads[name], gradient) <= 2 * tolerance, name


@pytest.fixture
def calls(monkeypatch):
    """Ranks that x was projected to, and how many merged weights were made."""
    made = {"down": [], "merged": 0}
    down, merge = skinny.down, linear_group._merged_weight

    def spy_down(x, A, *rest):
        made["down"].append(A.shape[0])
        return down(x, A, *rest)

    def spy_merge(*arguments):
        made["merged"] += 1
        return merge(*arguments)

    monkeypatch.setattr(skinny, "down", spy_down)
    monkeypatch.setattr(linear_group, "_merged_weight", spy_merge)
    return made


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(4,), (2, 3), (0,), ()], ids=str)
def test_outputs_and_all_gradients_are_those_of_separate_layers(group, shape):
    x, layers = operands(group, *shape)
    x = x if shape else x[0]
    wanted = set(leaves_of(x, layers))
    expected = gradients(reference, x, layers, wanted)
    assert_same(gradients(low_rank_linears, x, layers, wanted), expected)
    with torch.no_grad():
        assert_same((low_rank_linears(x, layers), {}), (expected[0], {}))


@pytest.mark.parametrize("group", ["ranks and sizes differ", "stacks in turn"])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradcheck(group, frozen):
    x, layers = operands(group, 3)
    leaves = leaves_of(x, layers)
    wanted = [n for n in leaves if not (frozen and n.startswith(("W0", "bias")))]
    inputs = tuple(leaves[name].requires_grad_() for name in wanted)
    # The operands are the very leaves that gradcheck moves.
    assert torch.autograd.gradcheck(lambda *_: low_rank_linears(x, layers), inputs)


SUBSETS = {
    "x": ["x"],
    "one A": ["A 1 0"],
    "one B": ["B 0 0"],
    "A and B of different layers": ["A 0 0", "B 1 0"],
    "a weight": ["W0 1"],
    "a bias": ["bias 0"],
    "x and one B": ["x", "B 1 0"],
    "all but x": ["A 0 0", "B 0 0", "A 1 0", "B 1 0", "W0 0", "bias 0"],
}


@pytest.mark.parametrize("wanted", SUBSETS.values(), ids=SUBSETS)
@pytest.mark.parametrize("group", ["two terms in one layer", "one mask", "two masks"])
@pytest.mark.parametrize("crossover", [0, math.inf], ids=["merged", "apart"])
def test_only_the_gradients_asked_for_come_back(wanted, group, crossover, monkeypatch):
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", crossover)
    x, layers = operands(group)
    got = gradients(low_rank_linears, x, layers, wanted)
    assert set(got[1]) == set(wanted)
    assert_same(got, gradients(reference, x, layers, wanted))


@pytest.mark.parametrize("group", ["ranks and sizes differ", "stacks in turn"])
@pytest.mark.parametrize("used", [[0], [1], [2], [0, 2]], ids=str)
@pytest.mark.parametrize("crossover", [0, math.inf], ids=["merged", "apart"])
def test_layers_whose_output_is_not_used(group, used, crossover, monkeypatch):
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", crossover)
    x, layers = operands(group)
    wanted = set(leaves_of(x, layers))
    got = gradients(low_rank_linears, x, layers, wanted, used)
    expected = gradients(reference, x, layers, wanted, used)
    # The factors of an unused layer have a gradient of zero where their stack has one at all.
    for name in set(got[1]) - set(expected[1]):
        assert got[1].pop(name).eq(0).all()
    assert_same(got, expected)


@pytest.mark.parametrize(
    ("group", "ranks"),
    [
        ("three layers", [6]),
        ("ranks and sizes differ", [7]),
        ("two terms in one layer", [6]),
        ("one mask", [5]),
        ("two masks", [2, 3]),
        ("one seed, p differs", [2, 3]),
        ("stacks in turn", [3, 4, 2]),
        ("p = 0 with a seed", [2, 3]),
    ],
)
def test_x_is_read_once_for_all_terms_under_one_mask(group, ranks, calls, monkeypatch):
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", math.inf)
    x, layers = operands(group)
    low_rank_linears(x, layers)
    assert calls["down"] == ranks


@pytest.mark.parametrize("group", UNDROPPED)
def test_both_bracketings_agree(group, calls, monkeypatch):
    x, layers = operands(group, 5)
    wanted = set(leaves_of(x, layers))
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", math.inf)
    apart = gradients(low_rank_linears, x, layers, wanted)
    assert calls["merged"] == 0
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", 0)
    assert_same(gradients(low_rank_linears, x, layers, wanted), apart)
    assert calls["merged"] == 2 * len(layers)  # in forward and in backward
    calls["down"].clear()
    with torch.no_grad():
        assert_same((low_rank_linears(x, layers), {}), (apart[0], {}))
    assert calls["down"] == []  # u is needed for gradients alone


def test_merging_rounds_the_factors_to_the_weight_s_dtype(monkeypatch):
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", 0)
    x, layers = operands("two terms in one layer", dtype=torch.float32, factor_dtype=torch.float64)
    wanted = set(leaves_of(x, layers))
    got = gradients(low_rank_linears, x, layers, wanted)
    for name, gradient in got[1].items():
        assert gradient.dtype == (torch.float64 if name[0] in "AB" else torch.float32)
    wide = [widened(layer) for layer in layers]
    expected = gradients(reference, x.detach().double(), wide, wanted)
    assert_same(got, expected, tolerance=TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_never_merge(dtype, calls, monkeypatch):
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", 0)
    x, layers = operands("two terms in one layer", 50, dtype=dtype, factor_dtype=torch.float32)
    wanted = set(leaves_of(x, layers))
    got = gradients(low_rank_linears, x, layers, wanted)
    assert calls["merged"] == 0
    with torch.no_grad():
        low_rank_linears(x, layers)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        low_rank_linears(x.float(), [widened(layer) for layer in layers])
    assert calls["merged"] == 0
    exact = gradients(reference, x.detach().double(), [widened(la) for la in layers], wanted)
    for h, expected in zip(got[0], exact[0], strict=True):
        assert h.dtype == dtype and largest_error(h, expected) <= TOLERANCE[dtype]
    for name, gradient in exact[1].items():
        assert got[1][name].dtype == (torch.float32 if name[0] in "AB" else dtype)
        assert largest_error(got[1][name], gradient) <= GRADIENT_TOLERANCE[dtype], name


def test_dropout_never_merges(calls, monkeypatch):
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", 0)
    x, layers = operands("stacks in turn", 50)
    gradients(low_rank_linears, x, layers, set(leaves_of(x, layers)))
    with torch.no_grad():
        low_rank_linears(x, layers)
    assert calls["merged"] == 0


def test_where_merging_begins():
    # Weights of (5, 6) and (3, 6): 48 products of weights, 20 sums of sides.
    _, layers = operands("two terms in one layer")
    edge = linear_group.MERGE_CROSSOVER * 48 / 20
    for trains, first in ((False, math.floor(edge) + 1), (True, math.floor(2 * edge) + 1)):
        assert not linear_group.merges(first - 1, layers, torch.float32, trains)
        assert linear_group.merges(first, layers, torch.float64, trains)


def test_no_merging_while_compiling(monkeypatch):
    _, layers = operands("three layers")
    assert linear_group.merges(10**6, layers, torch.float32, trains=True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not linear_group.merges(10**6, layers, torch.float32, trains=True)


@pytest.mark.parametrize("group", ["two terms in one layer", "stacks in turn"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("crossover", [0, math.inf], ids=["merged", "apart"])
def test_sums_made_in_place_touch_no_input(group, dtype, crossover, monkeypatch):
    monkeypatch.setattr(linear_group, "MERGE_CROSSOVER", crossover)
    x, layers = operands(group, dtype=dtype)
    inputs = [*leaves_of(x, layers).values(), *SEEDS]
    before = [t.clone() for t in inputs]
    leaves = [t.requires_grad_() for t in inputs[: -len(SEEDS)]]
    outputs = low_rank_linears(x, layers)
    gs = [torch.randn(h.shape).to(dtype) for h in outputs]
    given = [g.clone() for g in gs]
    first = torch.autograd.grad(outputs, leaves, gs, retain_graph=True)
    again = torch.autograd.grad(outputs, leaves, gs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gs, given, strict=True))


@pytest.mark.parametrize("output", [0, 1])
def test_an_output_may_be_changed_in_place(output):
    x, layers = operands("one mask", 2, 3)
    wanted = set(leaves_of(x, layers))

    def with_change(function):
        def changed(x, layers):
            outputs = list(function(x, layers))
            outputs[output] = F.relu(outputs[output], inplace=True)
            return outputs

        return gradients(changed, x, layers, wanted)

    assert_same(with_change(low_rank_linears), with_change(reference))


@pytest.mark.parametrize("group", ["three layers", "one mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saves_x_once_and_one_low_rank_tensor(group, dtype):
    x, layers = operands(group, 2, 20, dtype=dtype, factor_dtype=torch.float32)
    x.requires_grad_()
    for layer in layers:
        for term in layer.terms:
            term.A.requires_grad_()
            term.B.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        low_rank_linears(x, layers)
    parameters = {t.data_ptr() for name, t in leaves_of(x, layers).items() if name != "x"}
    ours = [t for t in saved if t.data_ptr() not in parameters]
    assert sum(t.data_ptr() == x.data_ptr() for t in ours) == 1
    ranks = sum(term.A.shape[0] for layer in layers for term in layer.terms)
    seed = [1] if group == "one mask" else []
    assert sorted(t.numel() for t in ours) == [*seed, *sorted([40 * ranks, x.numel()])]


def test_x_is_not_saved_where_no_gradient_reads_it():
    x, layers = operands("three layers", 9)
    x.requires_grad_()
    layers[0].terms[0].B.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        low_rank_linears(x, layers)
    assert x.data_ptr() not in {t.data_ptr() for t in saved}


def test_operands_of_a_later_layer_that_do_not_fit_are_named():
    x, layers = operands("three layers")
    wrong = layers[2].terms[0]._replace(A=torch.zeros(2, IN + 1).double())
    with pytest.raises(ShapeError, match=r"lora_A \(2, 7\) and lora_B \(5, 2\).*\(5, 6\)"):
        low_rank_linears(x, [*layers[:2], layers[2]._replace(terms=[wrong])])
    with pytest.raises(DtypeError, match=r"torch.float64 but its weight is torch.float32"):
        low_rank_linears(x, [*layers[:2], layers[2]._replace(W0=layers[2].W0.float())])


def test_backward_computes_nothing_unasked_and_gives_factors_their_own_dtype():
    x, layers = operands("two terms in one layer", dtype=torch.float32, factor_dtype=torch.float64)
    hs, vs, us = linear_group.forward(x, layers)
    nothing = [LinearNeeds(False, False, [TermNeeds(False, False)] * len(t)) for *_, t in layers]
    one = [nothing[0]._replace(terms=[TermNeeds(True, False), TermNeeds(False, True)]), nothing[1]]
    grad_x, (first, second) = linear_group.backward(x, layers, us, vs, hs, False, one)
    assert grad_x is first.W0 is first.bias is second.W0 is second.bias is None
    (A, no_B, _), (no_A, B, _) = first.terms
    assert no_B is no_A is None and second.terms == [TermGradients()]
    assert A.dtype == B.dtype == torch.float64
