"""Rows of several adapters in one node, against one adapted layer for each row."""

import pytest
import torch
from torch.nn import functional as F

from lorakit.errors import DtypeError, ShapeError
from lorakit.ops import LowRankTerm, RowScale, apply_keep_mask, low_rank_linear
from lorakit.ops.grouped import low_rank_linear_per_row
from lorakit.ops.native import compiled_library, cpu_kernels
from lorakit.ops.per_row_terms import PerRowTerms
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

INSIDE, OUT = 12, 10
SEED = torch.tensor(2**61 + 5)
INDEXES = {
    "each its own": (0, 1, 2),
    "runs and some without": (1, 1, -1, 0, 2, 2, 2, -1),
    "one for all": (0, 0, 0, 0),
    "back and forth": (0, 1, 0, 1, 0),
    "a single row": (2,),
    "none at all": (-1, -1),
}


@pytest.fixture(params=["compiled", "torch"])
def products(request, monkeypatch):
    """Run with the compiled products, and with torch's own."""
    if request.param == "torch":
        monkeypatch.setattr(cpu_kernels, "load", lambda: None)
    elif cpu_kernels.load() is None:
        pytest.skip(f"no compiled products: {compiled_library.unavailable()}")
    return request.param


def operands(rows, *tokens, dtype=torch.float64, p=(0.0, 0.0, 0.0)):
    """Return x, W0, bias and three terms of the ranks 2, 5 and 8."""
    torch.manual_seed(0)

    def draw(*shape, spread=1.0):
        return (spread * torch.randn(shape, dtype=torch.float64)).to(dtype)

    x, W0, bias = draw(rows, *tokens, INSIDE), draw(OUT, INSIDE, spread=0.3), draw(OUT)
    terms = [
        LowRankTerm(
            draw(r, INSIDE, spread=0.3), draw(OUT, r), 0.5 + i, p[i], SEED if p[i] else None
        )
        for i, r in enumerate((2, 5, 8))
    ]
    return x, W0, bias, terms


def reference(x, W0, bias, terms, index):
    """Compute row by row, each mask as part of the whole activation's."""
    rows = []
    for row, number in enumerate(index):
        h = F.linear(x[row], W0, bias)
        if number >= 0:
            A, B, scaling, p, seed, _ = terms[number]
            dropped = apply_keep_mask(torch.ones_like(x), p, seed)[row] * x[row] if p else x[row]
            h = h + scaling * (dropped @ A.T) @ B.T
        rows.append(h)
    return torch.stack(rows)


def leaves_of(x, terms):
    leaves = [x, *(factor for term in terms for factor in (term.A, term.B))]
    return [leaf.requires_grad_() for leaf in leaves]


def gradients_of(h, leaves, g):
    return torch.autograd.grad(h, leaves, g, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
@pytest.mark.parametrize("tokens", [(), (1,), (6,), (2, 3), (40,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_output_and_gradients_are_those_of_each_row_alone(products, dtype, tokens, index):
    x, W0, bias, terms = operands(len(index), *tokens, dtype=dtype)
    leaves = leaves_of(x, terms)
    h = low_rank_linear_per_row(x, W0, bias, PerRowTerms(terms, index))
    g = torch.randn(h.shape, dtype=torch.float64).to(dtype)
    got = gradients_of(h, leaves, g)

    wide = [leaf.detach().double() for leaf in leaves]
    wide_terms = [
        LowRankTerm(A, B, t.scaling) for t, A, B in zip(terms, wide[1::2], wide[2::2], strict=True)
    ]
    wide = leaves_of(wide[0], wide_terms)
    expected_h = reference(wide[0], W0.double(), bias.double(), wide_terms, index)
    expected = gradients_of(expected_h, wide, g.double())
    assert h.dtype == dtype
    assert largest_error(h, expected_h) <= 2 * TOLERANCE[dtype]
    for leaf, one, other in zip(leaves, got, expected, strict=True):
        assert one.dtype == leaf.dtype
        assert largest_error(one, other) <= 2 * GRADIENT_TOLERANCE[dtype]


@pytest.mark.parametrize("p", [(0.3, 0.3, 0.3), (0.0, 0.5, 0.0), (0.2, 0.5, 0.2)], ids=str)
@pytest.mark.parametrize("tokens", [(1,), (9,)], ids=str)
def test_dropout_has_the_mask_of_the_whole_activation(products, p, tokens):
    index = (1, -1, 0, 2, 2)
    x, W0, bias, terms = operands(5, *tokens, dtype=torch.float32, p=p)
    leaves = leaves_of(x, terms)
    h = low_rank_linear_per_row(x, W0, bias, PerRowTerms(terms, index))
    expected = reference(x, W0, bias, terms, index)
    g = torch.randn(h.shape)
    assert largest_error(h, expected) <= TOLERANCE[torch.float32]
    pairs = zip(gradients_of(h, leaves, g), gradients_of(expected, leaves, g), strict=True)
    for got, other in pairs:
        assert largest_error(got, other) <= GRADIENT_TOLERANCE[torch.float32]


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck_with_a_trained_base(p):
    index = (1, -1, 0, 1)
    x, W0, bias, terms = operands(4, 2, p=(p, p, p))
    leaves = [*leaves_of(x, terms[:2]), W0.requires_grad_(), bias.requires_grad_()]

    def op(x, A, B, A2, B2, W0, bias):
        ours = [terms[0]._replace(A=A, B=B), terms[1]._replace(A=A2, B=B2)]
        return low_rank_linear_per_row(x, W0, bias, PerRowTerms(ours, index))

    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("needed", ["x", "A", "B"])
def test_only_the_gradients_asked_for_are_computed(products, needed):
    index = (0, 1, 1)
    x, W0, bias, terms = operands(3, 4, dtype=torch.float32)
    leaf = {"x": x, "A": terms[1].A, "B": terms[1].B}[needed].requires_grad_()
    low_rank_linear_per_row(x, W0, bias, PerRowTerms(terms, index)).sum().backward()
    got, leaf.grad = leaf.grad, None
    reference(x, W0, bias, terms, index).sum().backward()
    assert largest_error(got, leaf.grad) <= GRADIENT_TOLERANCE[torch.float32]
    others = [t for term in terms for t in (term.A, term.B) if t is not leaf]
    assert all(other.grad is None for other in others)


def test_a_term_no_row_has_gets_a_gradient_of_zeros(products):
    x, W0, bias, terms = operands(2, 3, dtype=torch.float32)
    leaves = leaves_of(x, terms)
    h = low_rank_linear_per_row(x, W0, bias, PerRowTerms(terms, (0, 0)))
    gradients = gradients_of(h, leaves, torch.ones_like(h))
    assert all(gradient.eq(0).all() for gradient in gradients[3:])
    assert not gradients[1].eq(0).all()


def test_without_gradients_and_with_them_the_same_bits(products):
    x, W0, bias, terms = operands(3, 4, dtype=torch.float32)
    rows = PerRowTerms(terms, (2, -1, 0))
    with torch.no_grad():
        alone = low_rank_linear_per_row(x, W0, bias, rows)
        assert torch.equal(low_rank_linear_per_row(x, W0, bias, rows), alone)
    terms[0].A.requires_grad_()
    assert torch.equal(low_rank_linear_per_row(x, W0, bias, rows), alone)


@pytest.mark.parametrize("tokens", [1, 5])
def test_saves_x_itself_and_one_low_rank_tensor(products, tokens):
    x, W0, bias, terms = operands(4, tokens, dtype=torch.float32, p=(0.5, 0.5, 0.5))
    leaves_of(x, terms)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        low_rank_linear_per_row(x, W0, bias, PerRowTerms(terms, (0, 1, 2, -1)))
    known = [x, W0, bias, *(t for term in terms for t in (term.A, term.B))]
    pointers = {t.data_ptr() for t in known}
    ours = [t for t in saved if t.data_ptr() not in pointers]
    assert sorted(t.numel() for t in ours) == sorted([1, 4 * tokens * 8])  # the seed and u


def test_float32_factors_on_a_bfloat16_base(products):
    x, W0, bias, terms = operands(3, 4, dtype=torch.bfloat16)
    terms = [t._replace(A=t.A.float(), B=t.B.float()) for t in terms]
    leaves = leaves_of(x, terms)
    h = low_rank_linear_per_row(x, W0, bias, PerRowTerms(terms, (0, 1, 2)))
    gradients = gradients_of(h, leaves, torch.ones_like(h))
    assert h.dtype == gradients[0].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in gradients[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_factors_in_16_bits_give_what_the_same_values_in_32_bits_give(products, tokens, dtype):
    x, W0, bias, terms = operands(4, tokens, dtype=dtype)
    half = [t._replace(A=t.A.bfloat16(), B=t.B.bfloat16()) for t in terms]
    wide = [t._replace(A=t.A.float(), B=t.B.float()) for t in half]
    index = (0, 2, 1, -1)
    h = low_rank_linear_per_row(x, W0, bias, PerRowTerms(half, index))
    expected = low_rank_linear_per_row(x, W0, bias, PerRowTerms(wide, index))
    assert largest_error(h, expected) <= TOLERANCE[dtype]
    leaves = leaves_of(x, half)
    low_rank_linear_per_row(x, W0, bias, PerRowTerms(half, index)).sum().backward()
    twins = leaves_of(x.detach().clone(), wide)
    low_rank_linear_per_row(twins[0], W0, bias, PerRowTerms(wide, index)).sum().backward()
    for leaf, twin in zip(leaves, twins, strict=True):
        assert largest_error(leaf.grad, twin.grad) <= GRADIENT_TOLERANCE[leaf.dtype]


def test_under_autocast(products):
    x, W0, bias, terms = operands(3, 4, dtype=torch.float32)
    leaves = leaves_of(x, terms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = low_rank_linear_per_row(x, W0, bias, PerRowTerms(terms, (0, 1, -1)))
    assert h.dtype == torch.bfloat16
    gradients = gradients_of(h, leaves, torch.ones_like(h))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert largest_error(h, reference(x, W0, bias, terms, (0, 1, -1))) <= TOLERANCE[torch.bfloat16]


def test_an_expanded_gradient_and_a_strided_input(products):
    x, W0, bias, terms = operands(3, 4, dtype=torch.float32)
    leaves = leaves_of(x, terms)
    strided = torch.stack([x, x], -1)[..., 0]
    h = low_rank_linear_per_row(strided, W0, bias, PerRowTerms(terms, (0, 1, 2)))
    got = gradients_of(h.sum(), leaves, None)
    expected = gradients_of(reference(x, W0, bias, terms, (0, 1, 2)).sum(), leaves, None)
    for one, other in zip(got, expected, strict=True):
        assert largest_error(one, other) <= GRADIENT_TOLERANCE[torch.float32]


def test_zero_tokens(products):
    x, W0, bias, terms = operands(2, 0, dtype=torch.float32)
    leaves = leaves_of(x, terms)
    h = low_rank_linear_per_row(x, W0, bias, PerRowTerms(terms, (0, 1)))
    assert h.shape == (2, 0, OUT)
    gradients = gradients_of(h, leaves, torch.ones_like(h))
    assert all(gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_do_not_depend_on_threads(threads):
    if cpu_kernels.load() is None:
        pytest.skip(f"no compiled products: {compiled_library.unavailable()}")
    before = torch.get_num_threads()
    x, W0, bias, terms = operands(6, 50, dtype=torch.float32)
    rows = PerRowTerms(terms, (0, 0, 1, -1, 2, 1))
    leaves = leaves_of(x, terms)
    results = []
    try:
        for count in (threads, 1):
            torch.set_num_threads(count)
            h = low_rank_linear_per_row(x, W0, bias, rows)
            results.append([h, *gradients_of(h, leaves[1:], torch.ones_like(h))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(2, 3, INSIDE), (INSIDE,)], ids=str)
def test_another_number_of_rows_is_named(shape):
    _, W0, bias, terms = operands(1)
    with pytest.raises(ShapeError) as caught:
        low_rank_linear_per_row(
            torch.zeros(shape).double(), W0, bias, PerRowTerms(terms, (0, 1, 2))
        )
    assert str(caught.value) == (
        f"Adapters are given for 3 rows, but the input of an adapted layer has shape {shape}, "
        "expected 3 as its first dimension. Name one adapter for each row of the batch; "
        "generate() repeats the names as it repeats rows for beams."
    )


def test_mixed_dtypes_outside_autocast_are_refused():
    x, W0, bias, terms = operands(2, dtype=torch.bfloat16)
    with pytest.raises(DtypeError, match="expected one dtype"):
        low_rank_linear_per_row(x.float(), W0, bias, PerRowTerms(terms, (0, 1)))


@pytest.mark.parametrize("p", [(0.0, 0.0, 0.0), (0.3, 0.0, 0.3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_segments_of_a_packed_sequence_are_computed_one_by_one(products, dtype, p):
    index, lengths = (1, -1, 0, 2, 1, 1), (3, 2, 1, 7, 1, 4)
    x, W0, bias, terms = operands(1, sum(lengths), dtype=dtype, p=p)
    by_token = [number for number, n in zip(index, lengths, strict=True) for _ in range(n)]
    leaves = leaves_of(x, terms)
    h = low_rank_linear_per_row(x, W0, bias, PerRowTerms(terms, index, lengths=lengths))
    wide = [leaf.detach().double() for leaf in leaves]
    wide_terms = [
        t._replace(A=A, B=B) for t, A, B in zip(terms, wide[1::2], wide[2::2], strict=True)
    ]
    wide = leaves_of(wide[0], wide_terms)
    expected = reference(wide[0][0], W0.double(), bias.double(), wide_terms, by_token)
    assert largest_error(h[0], expected) <= 2 * TOLERANCE[dtype]
    g = torch.randn(h.shape, dtype=torch.float64).to(dtype)
    pairs = zip(
        gradients_of(h, leaves, g), gradients_of(expected, wide, g[0].double()), strict=True
    )
    for got, other in pairs:
        assert largest_error(got, other) <= 2 * GRADIENT_TOLERANCE[dtype]


@pytest.mark.parametrize("lengths", [None, (2, 1, 3)])
def test_row_scales_and_biases_belong_to_their_rows(products, lengths):
    x, W0, bias, terms = operands(3, 2, dtype=torch.float32)
    x = x if lengths is None else x.view(1, 6, -1)
    scale = RowScale((torch.rand(OUT) + 0.5).requires_grad_(), torch.rand(OUT) + 0.5)
    terms[1] = terms[1]._replace(row_scale=scale)
    biases = [None, torch.randn(OUT), None]
    rows = PerRowTerms(terms, (1, -1, 0), biases, lengths)
    h = low_rank_linear_per_row(x, W0, bias, rows)
    begin, pieces = 0, []
    for number, count in zip((1, -1, 0), lengths or (2, 2, 2), strict=True):
        piece = x.view(6, -1)[begin : begin + count]
        begin += count
        ours = [terms[number]] if number >= 0 else []
        trained = biases[number] if number >= 0 else None
        pieces.append(low_rank_linear(piece, W0, bias if trained is None else trained, ours))
    assert largest_error(h.view(6, -1), torch.cat(pieces)) <= TOLERANCE[torch.float32]
    (got,) = torch.autograd.grad(h.square().sum(), scale.lengths)
    (other,) = torch.autograd.grad(torch.cat(pieces).square().sum(), scale.lengths)
    assert largest_error(got, other) <= GRADIENT_TOLERANCE[torch.float32]


@pytest.mark.parametrize("shape", [(2, 3), (1, 5), (4,)], ids=str)
def test_a_packed_sequence_of_another_length(shape):
    _, W0, bias, terms = operands(1, dtype=torch.float32)
    with pytest.raises(ShapeError, match=r"segments of 6 tokens.*expected \(1, 6, features\)"):
        rows = PerRowTerms(terms, (0, 1), lengths=(2, 4))
        low_rank_linear_per_row(torch.randn(*shape, INSIDE), W0, bias, rows)
