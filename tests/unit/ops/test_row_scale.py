import pytest
import torch
from torch import nn

from lorakit.ops import (
    LinearOperands,
    LowRankTerm,
    RowScale,
    apply_keep_mask,
    low_rank_linear,
    low_rank_mlp,
)
from lorakit.ops.quantized import dense
from lorakit.ops.reference import dora_linear_reference
from lorakit.ops.row_scale import add_changes, factors, row_norms, up_scaled
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

HALF = [torch.float16, torch.bfloat16]


def operands(dtype=torch.float64, tokens=7, inside=24, out=10, r=3):
    torch.manual_seed(0)
    x = torch.randn(2, tokens, inside, dtype=dtype)
    W0 = torch.randn(out, inside, dtype=dtype) / inside**0.5
    A = torch.randn(r, inside, dtype=torch.promote_types(dtype, torch.float32)) / inside**0.5
    B = torch.randn(out, r, dtype=A.dtype)
    magnitude = torch.rand(out, dtype=A.dtype) + 0.5
    bias = torch.randn(out, dtype=dtype)
    return x, W0, bias, A, B, magnitude


def dora(x, W0, bias, A, B, scaling, magnitude, *dropout):
    norms = row_norms(W0, A.detach(), B.detach(), scaling)
    drop = dropout or (0.0, None)
    term = LowRankTerm(A, B, scaling, *drop, RowScale(magnitude, norms))
    return low_rank_linear(x, W0, bias, [term])


def term_with(magnitude, norms):
    """Return a term that scales rows, whose factors are not read."""
    return LowRankTerm(torch.empty(0), torch.empty(0), 1.0, row_scale=RowScale(magnitude, norms))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_norms_are_those_of_the_dense_sum(dtype, is_transposed):
    _, W0, _, A, B, _ = operands(dtype)
    given = W0.t().contiguous().t() if is_transposed else W0
    assert given.is_contiguous() != is_transposed
    got = row_norms(given, A, B, 0.7)
    expected = (W0.double() + 0.7 * B.double() @ A.double()).norm(dim=1)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    assert largest_error(got, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(5, 1), (1, 6), (3, 4)])
def test_norms_of_the_smallest_layers(shape):
    W0, A, B = torch.randn(shape), torch.randn(1, shape[1]), torch.randn(shape[0], 1)
    got = row_norms(W0, A, B, 2.0)
    assert largest_error(got, (W0 + 2 * B @ A).norm(dim=1)) <= TOLERANCE[torch.float32]


def test_a_row_of_zeros_stays_one():
    W0 = torch.randn(3, 4)
    W0[1] = 0
    A, B, magnitude = torch.randn(2, 4), torch.zeros(3, 2), W0.norm(dim=1)
    h = dora(torch.randn(5, 4), W0, None, A, B, 1.0, magnitude)
    assert torch.isfinite(h).all() and not h[:, 1].any()


def test_norms_are_taken_in_full_precision_under_autocast():
    _, W0, _, A, B, _ = operands(torch.float32)
    expected = row_norms(W0, A, B, 0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(row_norms(W0, A, B, 0.7), expected)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("with_bias", [True, False])
def test_outputs_and_gradients_are_the_reference_s(with_bias, p):
    x, W0, bias, A, B, magnitude = operands()
    bias = bias if with_bias else None
    leaves = [t.requires_grad_() for t in (x, A, B, magnitude, *([bias] if with_bias else []))]
    seed = torch.tensor(3)
    got = dora(x, W0, bias, A, B, 0.7, magnitude, *([p, seed] if p else []))
    dropped = apply_keep_mask(x, p, seed) if p else None
    expected = dora_linear_reference(x, W0, bias, A, B, 0.7, magnitude, dropped)
    assert largest_error(got, expected) <= TOLERANCE[torch.float64]
    weights = torch.randn_like(got)
    mine = torch.autograd.grad((got * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for one, other in zip(mine, theirs, strict=True):
        assert largest_error(one, other) <= GRADIENT_TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gradients_in_half_precision(dtype):
    x, W0, bias, A, B, magnitude = operands(dtype, tokens=150)  # more than one chunk of the sum
    leaves = [t.requires_grad_() for t in (x, A, B, magnitude)]
    got = dora(x, W0, bias, A, B, 0.7, magnitude)
    assert got.dtype == dtype
    wide = [t.detach().double().requires_grad_() for t in (x, A, B, magnitude)]
    expected = dora_linear_reference(
        wide[0], W0.double(), bias.double(), wide[1], wide[2], 0.7, wide[3]
    )
    assert largest_error(got, expected) <= TOLERANCE[dtype]
    mine = torch.autograd.grad(got.float().square().sum(), leaves)
    theirs = torch.autograd.grad(expected.square().sum(), wide)
    for one, other, leaf in zip(mine, theirs, leaves, strict=True):
        assert one.dtype == leaf.dtype
        assert largest_error(one, other) <= 2 * GRADIENT_TOLERANCE[dtype]


def test_gradcheck_of_one_and_of_several_terms():
    torch.manual_seed(0)
    h, one, two = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    lengths, bias = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    norms = torch.rand(4, dtype=torch.float64) + 0.5
    plain = LowRankTerm(torch.empty(0), torch.empty(0), 1.0)

    def of_one(h, one, lengths, bias):
        return add_changes(h, [one], [term_with(lengths, norms)], bias)

    def of_three(h, one, two, lengths, bias):
        terms = [term_with(lengths, norms), plain, term_with(2 * lengths, norms)]
        return add_changes(h, [one, two, one], terms, bias)

    assert torch.autograd.gradcheck(of_one, (h, one, lengths, bias))
    assert torch.autograd.gradcheck(of_three, (h, one, two, lengths, bias))


def test_several_terms_each_scale_their_sum():
    base, one, two = torch.randn(3, 2, 4).unbind()
    lengths, norms, bias = torch.rand(4) + 0.5, torch.rand(4) + 0.5, torch.randn(4)
    plain = LowRankTerm(torch.empty(0), torch.empty(0), 1.0)
    got = add_changes(base, [one, two], [term_with(lengths, norms), plain], bias)
    expected = base + bias + two + (lengths / norms) * (base + one) - base
    assert largest_error(got, expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("r", [3, 20])
def test_outputs_written_over_their_sums_have_the_same_gradients(r, with_bias, dtype):
    torch.manual_seed(0)
    tokens, width, hidden = 40, 24, 30
    x = torch.randn(tokens, width).to(dtype).double()
    leaves, layers = [], []
    for inside, out in ((width, hidden), (width, hidden), (hidden, width)):
        W0 = (torch.randn(out, inside) / inside**0.5).to(dtype).double()
        A, B = torch.randn(r, inside) / inside**0.5, torch.randn(out, r) / r**0.5
        lengths = torch.rand(out) + 0.5
        lengths[:2] = torch.tensor([0.0, -1e-3])  # outputs that vanish, or nearly
        bias = torch.randn(out).to(dtype).double() if with_bias else None
        leaves += [A, B, lengths]
        layers.append((W0, bias))

    def output(dtype, thin):
        leaf = [one.to(thin).detach().requires_grad_() for one in leaves]
        given = x.to(dtype).requires_grad_()
        operands = []
        for (W0, bias), A, B, lengths in zip(layers, *(leaf[i::3] for i in range(3)), strict=True):
            norms = row_norms(W0.to(dtype), A, B, 0.5)
            term = LowRankTerm(A, B, 0.5, row_scale=RowScale(lengths, norms))
            operands.append(
                LinearOperands(W0.to(dtype), None if bias is None else bias.to(dtype), [term])
            )
        h = low_rank_mlp(given, operands[:2], operands[2], "silu")
        gradients = torch.autograd.grad(h.double().square().sum(), [given, *leaf])
        return h, gradients

    got, mine = output(dtype, torch.float32)
    expected, theirs = output(torch.float64, torch.float64)  # torch's operations
    assert largest_error(got, expected) <= 4 * TOLERANCE[dtype]
    for one, other in zip(mine, theirs, strict=True):
        assert largest_error(one, other) <= 4 * GRADIENT_TOLERANCE[dtype]


def test_a_whole_mlp_saves_no_sums_beside_the_outputs_written_over_them():
    torch.manual_seed(0)
    saved = []
    for lengths in (None, torch.ones(64)):
        layer = LinearOperands(torch.randn(64, 8), None, ())
        A, B = torch.randn(2, 8, requires_grad=True), torch.zeros(64, 2, requires_grad=True)
        norms = row_norms(layer.W0, A, B, 1.0)
        scale = None if lengths is None else RowScale(lengths.requires_grad_(), norms)
        inner = layer._replace(terms=[LowRankTerm(A, B, 1.0, row_scale=scale)])
        h = low_rank_mlp(
            torch.randn(30, 8), [inner, inner], LinearOperands(torch.randn(8, 64), None, ()), "silu"
        )
        saved.append([t for t in h.grad_fn.saved_tensors if t is not None and t.shape == (30, 64)])
    assert len(saved[0]) == len(saved[1]) == 2


def test_a_small_step_of_the_magnitude_is_not_rounded_away():
    v = torch.full((1, 1), 256.0, dtype=torch.bfloat16)
    norms = torch.ones(1)
    # 1.003 is 1 in bfloat16; the sum is 256.77, and 256 and 258 are the neighbours.
    assert up_scaled(v, factors(RowScale(torch.tensor([1.003]), norms))).item() == 256
    assert up_scaled(v, factors(RowScale(torch.tensor([1.0055]), norms))).item() == 258


def test_what_a_frozen_magnitude_saves():
    x, W0, bias, A, B, magnitude = operands(torch.float32)
    h = dora(x.requires_grad_(), W0, bias, A, B, 0.7, magnitude)
    outputs = [t for t in h.grad_fn.saved_tensors if t is not None and t.shape[-1] == W0.shape[0]]
    assert all(t.ndim == 1 for t in outputs)  # the bias, the magnitude and the norms


def test_norms_of_a_quantized_weight():
    pytest.importorskip("bitsandbytes")
    from lorakit.layers.bitsandbytes_storage import quantized_weight
    from tiny_models.quantized import FOUR, quantized

    layer = quantized(nn.Sequential(nn.Linear(64, 32)), **FOUR)[0]
    weight = quantized_weight(layer)
    A, B = torch.randn(2, 64), torch.randn(32, 2)
    expected = (dense(weight, torch.float32).clone() + 0.5 * B @ A).norm(dim=1)
    got = row_norms(weight, A, B, 0.5)
    assert largest_error(got, expected) <= TOLERANCE[torch.float32]
