"""Scaled rows in C against torch in float64; widths and tokens are those around its tiles."""

import pytest
import torch

from lorakit.ops.native import compiled_library, row_scale_kernels
from tolerances import TOLERANCE

EXACT = TOLERANCE[torch.float32]
HALF_ROUNDING = 2**-8
DTYPES = (torch.float32, torch.bfloat16)
SIZES = [(0, 5), (1, 1), (3, 57), (7, 256), (16, 261), (17, 3), (300, 514)]  # (tokens, width)
RANKS = [None, 1, 8, 33]
"""None for sums that have their low-rank term already."""


@pytest.fixture
def kernels():
    found = row_scale_kernels.load()
    if found is None:
        pytest.skip(f"no compiled products: {compiled_library.unavailable()}")
    return found


@pytest.fixture(params=SIZES, ids=str)
def size(request):
    torch.manual_seed(0)
    return request.param


def strided(rows, width, dtype=torch.float32):
    """Return random rows that lie 5 elements apart in a tensor filled with NaN."""
    whole = torch.full((rows, width + 5), torch.nan, dtype=dtype)
    part = whole[:, 2 : 2 + width]
    part.copy_(torch.randn(rows, width))
    return part


def term_of(tokens, width, r):
    return (None, None) if r is None else (strided(tokens, r), torch.randn(width, r) / 8)


def assert_close(got, expected, roundings=1):
    """Compare with float64; bfloat16 is rounded a number of times."""
    exact = EXACT * expected.abs().max().clamp_min(1e-30) if expected.numel() else 0
    half = roundings * HALF_ROUNDING * expected.abs() if got.dtype == torch.bfloat16 else 0
    assert got.shape == expected.shape
    assert ((got.double() - expected).abs() <= exact + half).all()


@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["apart", "over", "wider", "with a bias"])
def test_up(kernels, size, dtype, r, how):
    width = size[1]
    v, (u, B) = strided(*size, dtype), term_of(*size, r)
    scale = torch.rand(width) + 0.5
    bias = torch.randn(width) if how == "with a bias" else None
    added = v.double() if r is None else v.double() + 0.7 * u.double() @ B.double().t()
    before = v.clone()
    h = v if how == "over" else strided(*size, torch.float32 if how == "wider" else dtype)
    kernels.up_(v, u, B, 0.7, scale, bias, h)
    if how != "over":
        assert_close(v, added)
        if r is None:
            assert torch.equal(v, before)
        added = v.double()  # as rounded
    assert_close(h, added * scale + (0 if bias is None else bias), roundings=2)


@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["apart", "over", "nothing else"])
def test_up_backward(kernels, size, dtype, r, how):
    tokens, width = size
    g, v = strided(*size, dtype), strided(*size)
    u, B = term_of(*size, r)
    scale, grad_u = torch.rand(width) + 0.5, None if r is None else strided(tokens, r)
    scaled = g.double() * scale
    dots, sizes = (g.double() * v).sum(0), (g.double() * v).abs().sum(0)
    out = g if how == "over" else strided(*size, dtype)
    needs = how != "nothing else"
    found, grad_B = kernels.up_backward(
        g, v if needs else None, scale, out, u, B, 0.7, grad_u, needs
    )
    assert_close(out, scaled)
    if r is not None:
        wide = 0.7 * out.double() @ B.double()
        sum_sizes = out.double().abs() @ B.double().abs()
        assert ((grad_u - wide).abs() <= EXACT * sum_sizes + 1e-30).all()
    if not needs:
        assert found is grad_B is None
        return
    assert found.dtype == torch.float32 and ((found - dots).abs() <= EXACT * sizes + 1e-30).all()
    if r is None:
        assert grad_B is None
    else:
        expected, sizes = 0.7 * scaled.t() @ u.double(), scaled.abs().t() @ u.double().abs()
        assert ((grad_B - expected).abs() <= EXACT * sizes + 1e-30).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r", [1, 8, 24, 33])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (16, 57), (33, 256), (40, 514)], ids=str)
def test_row_norms(kernels, dtype, shape, r):
    torch.manual_seed(0)
    W0, A = strided(*shape, dtype), torch.randn(r, shape[1]) / 8
    B = torch.randn(shape[0], r)
    got = kernels.row_norms(W0, A, B, 0.7)
    expected = (W0.double() + 0.7 * B.double() @ A.double()).norm(dim=1)
    assert got.dtype == torch.float32
    # A norm is a difference of squares where the update cancels the weight.
    squares = W0.double().square().sum(1) + (0.7 * B.double() @ A.double()).square().sum(1)
    assert ((got.double() ** 2 - expected**2).abs() <= 2 * EXACT * squares).all()


def test_rows_of_zeros_have_a_norm_that_divides(kernels):
    norms = kernels.row_norms(torch.zeros(2, 3), torch.randn(1, 3), torch.zeros(2, 1), 1.0)
    assert (norms > 0).all() and torch.isfinite(0 / norms).all()


def test_a_factor_of_one_changes_no_bit(kernels):
    torch.manual_seed(0)
    v, u = strided(33, 300), strided(33, 4)
    expected, h = v.clone(), strided(33, 300)
    kernels.up_(v, u, torch.zeros(300, 4), 2.0, torch.ones(300), None, h)
    assert torch.equal(h, expected) and torch.equal(v, expected)


def test_results_do_not_depend_on_the_number_of_threads(kernels):
    torch.manual_seed(0)
    g, v, u = strided(300, 514), strided(300, 514), strided(300, 8)
    B, scale, W0, A = torch.randn(514, 8), torch.rand(514), strided(300, 514), torch.randn(8, 514)
    before = torch.get_num_threads()
    seen = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, h, grad_u, sums = (torch.zeros_like(t) for t in (g, v, u, v))
            sums.copy_(v)
            kernels.up_(sums, u, B, 0.5, scale, None, h)
            found = kernels.up_backward(g, v, scale, out, u, B, 0.5, grad_u, True)
            norms = kernels.row_norms(W0, A, torch.ones(300, 8), 0.5)
            seen.append([h, out, grad_u, *found, norms])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(one, two) for one, two in zip(seen[0], other, strict=True))
