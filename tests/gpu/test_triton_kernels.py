"""The products in Triton against torch's own operations in float64, on a GPU.

tests/unit/ops/triton/test_triton_kernels.py runs this file in Triton's interpreter, on a CPU.
"""

import os

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not IS_INTERPRETED and not torch.cuda.is_available():
    pytest.skip("there is no CUDA GPU", allow_module_level=True)
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from fixtures.random_masks import splitmix64  # noqa: E402
from lorakit.ops import (  # noqa: E402
    LinearOperands,
    LowRankTerm,
    apply_keep_mask,
    keep_mask,
    low_rank_linears,
    skinny,
)
from lorakit.ops.dropout_mask import kernel_mask  # noqa: E402
from lorakit.ops.triton import gpu_kernels, triton_kernels  # noqa: E402
from lorakit.ops.triton.triton_kernels import TritonKernels, _keep_mask  # noqa: E402
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error  # noqa: E402

DEVICE = torch.device("cpu") if IS_INTERPRETED else torch.device("cuda", 0)
KERNELS = TritonKernels()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (tokens, width): none, one, parts of a tile, and a little more than whole ones; rows of whole hash
# words and others.
SHAPES = ((0, 8), (1, 1), (33, 3), (7, 57), (34, 132))
# 33 and 130 are factors in parts for some and all dtypes; the interpreter takes a second for each.
RANKS_AND_SHAPES = [(1, SHAPES[:3]), (3, SHAPES), (33, SHAPES[1:4]), (130, SHAPES[2:4])]
SEED = torch.tensor(2**62 + 77)
P = 0.3

# Thin results are float32 sums for 16-bit activations too.
THIN_TOLERANCE = TOLERANCE[torch.float32]
# One rounding to the nearest number; the interpreter cuts bfloat16 off instead.
ROUNDING = {
    torch.float32: 0.0,
    torch.bfloat16: 2**-7 if IS_INTERPRETED else 2**-8,
    torch.float16: 2**-11,
}


def strided(rows, width, dtype=torch.float32, frame=torch.nan):
    """Return random rows that lie 5 elements apart in a larger tensor filled with `frame`."""
    whole = torch.full((rows, width + 5), frame, dtype=dtype, device=DEVICE)
    part = whole[:, 2 : 2 + width]
    part.copy_(torch.randn(rows, width))
    return part


def is_framed(part, frame):
    """Return whether everything around a result of `strided` is as it was."""
    whole = part._base
    return whole[:, :2].eq(frame).all() and whole[:, 2 + part.shape[1] :].eq(frame).all()


def wide(*tensors):
    return [tensor.cpu().double() for tensor in tensors]


def assert_sums_of(got, expected, sizes):
    """Compare sums of products with float64; `sizes` are the sums of the absolute products."""
    assert got.shape == expected.shape and got.dtype == torch.float32
    assert ((got.cpu().double() - expected).abs() <= THIN_TOLERANCE * sizes).all()


def assert_rounded(got, expected, times=1):
    """Compare a large activation, rounded to its dtype a number of times, with float64."""
    exact = THIN_TOLERANCE * expected.abs().max().clamp_min(1e-30) if expected.numel() else 0
    # Of a sum in parts the rounded intermediate results may be larger than the last.
    largest = expected.abs() if times == 1 else expected.abs() + expected.abs().mean()
    assert got.shape == expected.shape
    difference = (got.cpu().double() - expected).abs()
    assert (difference <= exact + times * ROUNDING[got.dtype] * largest).all()


def factor(r, width, dtype):
    """Return a down-projection whose numbers the dtype of the products holds."""
    return (torch.randn(r, width) / 8).to(dtype).to(DEVICE)


@pytest.mark.parametrize(("r", "shapes"), RANKS_AND_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_down(dtype, r, shapes):
    for tokens, width in shapes:
        x, A = strided(tokens, width, dtype), factor(r, width, dtype)
        got = KERNELS.down(x, A, kernel_mask(P, SEED))
        sizes = skinny.down(*wide(x.abs(), A.abs()), P, SEED)
        assert_sums_of(got, skinny.down(*wide(x, A), P, SEED), sizes)


@pytest.mark.parametrize(("r", "shapes"), RANKS_AND_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_down_backward(dtype, r, shapes):
    check_down_backward(dtype, r, shapes, needs_x=True, needs_A=True)


@pytest.mark.parametrize("needs_x", [True, False], ids=["x alone", "A alone"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_down_backward_in_part(dtype, needs_x):
    check_down_backward(dtype, 3, SHAPES[2:], needs_x, needs_A=not needs_x)


def check_down_backward(dtype, r, shapes, needs_x, needs_A):
    parts = -(-r // triton_kernels._TILES[dtype].largest_rank)
    for tokens, width in shapes:
        x, A = strided(tokens, width, dtype), factor(r, width, dtype)
        grad_u = strided(tokens, r)
        grad_u.copy_(grad_u.to(dtype))  # it goes through the tensor cores in that dtype
        grad_x = strided(tokens, width, dtype) if needs_x else None
        expected_x = grad_x.cpu().double() if needs_x else None
        expected_A = skinny.down_backward_(*wide(x, A, grad_u), P, SEED, expected_x, needs_A)
        absolute = wide(x.abs(), A.abs(), grad_u.abs())
        sizes_A = skinny.down_backward_(*absolute, P, SEED, None, needs_A)
        grad_A = KERNELS.down_backward_(x, A, grad_u, kernel_mask(P, SEED), grad_x, needs_A)
        if needs_x:
            assert_rounded(grad_x, expected_x, parts)
        assert (grad_A is None) == (not needs_A)
        if needs_A:
            assert_sums_of(grad_A, expected_A, sizes_A)


def test_the_backward_of_nothing_is_nothing():
    x, A, grad_u = torch.ones(3, 8), torch.ones(2, 8), torch.ones(3, 2)
    assert KERNELS.down_backward_(x, A, grad_u, kernel_mask(P, SEED), None, False) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drop(dtype):
    for tokens, width in ((0, 8), (1, 1), (3, 5), (33, 132)):
        x = strided(tokens, width, dtype)
        got = KERNELS.drop(x, kernel_mask(P, SEED))
        assert got.dtype == dtype and got.is_contiguous()
        assert_rounded(got, skinny.drop_elements(*wide(x), P, SEED))


@pytest.mark.parametrize("seed", [1, 2**63 - 2, -3])
@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.float32, 36), (torch.float32, 35), (torch.bfloat16, 1), (torch.float16, 68)],
    ids=str,
)
def test_every_product_sees_the_bits_of_keep_mask(dtype, width, seed):
    # With A the identity, down gives drop(x) itself, and its backward the mask on dL/du.
    p, tokens, seed = 0.5, 34, torch.tensor(seed)
    expected = keep_mask((tokens, width), p, seed, torch.device("cpu"))
    x = strided(tokens, width, dtype).fill_(1)
    identity, mask = torch.eye(width, device=DEVICE), kernel_mask(p, seed)
    assert torch.equal(KERNELS.drop(x, mask).cpu() != 0, expected)
    assert torch.equal(KERNELS.down(x, identity, mask).cpu() != 0, expected)
    grad_x = torch.zeros(tokens, width, dtype=dtype, device=DEVICE)
    ones = torch.ones(tokens, width, device=DEVICE)
    grad_A = KERNELS.down_backward_(x, identity, ones, mask, grad_x, True)
    assert torch.equal(grad_x.cpu() != 0, expected)
    assert torch.equal(grad_A.cpu(), (2.0 * expected.sum(0)).expand(width, width))


@triton.jit
def _write_kept(
    out, first_row, width, seed: tl.uint64, COLUMNS: tl.constexpr, SHARES_WORDS: tl.constexpr
):  # fmt: skip
    rows = first_row + tl.arange(0, 2)
    kept = _keep_mask(rows, 0, width, seed, 0, COLUMNS, SHARES_WORDS)
    columns = tl.arange(0, COLUMNS)[None, :]
    tl.store(out + tl.arange(0, 2)[:, None] * COLUMNS + columns, kept.to(tl.int8))


@pytest.mark.parametrize("width", [4096, 4097])
@pytest.mark.parametrize("first_row", [2**19, 2**20, 2**31 - 3])
def test_positions_beyond_32_bits(first_row, width):
    out = torch.zeros(2, 32, dtype=torch.int8, device=DEVICE)
    _write_kept[(1,)](out, first_row, width, 5, COLUMNS=32, SHARES_WORDS=width % 4 == 0)
    positions = [(first_row + row) * width + column for row in range(2) for column in range(32)]
    assert positions[-1] >= 2**31
    lanes = [splitmix64(5 + at // 4) >> 16 * (at % 4) & 0xFFFF for at in positions]
    assert out.flatten().tolist() == [lane < 0x8000 for lane in lanes]  # the sign bit is clear


@pytest.mark.parametrize("programs", [1, 6])  # three blocks in one sum, and in two
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_sums_split_among_programs(dtype, programs, monkeypatch):
    monkeypatch.setattr(triton_kernels, "_PROGRAMS", programs)
    tokens, width, r = 70, 2 * triton_kernels._TILES[dtype].columns + 1, 5
    x, A, grad_u = strided(tokens, width, dtype), factor(r, width, dtype), strided(tokens, r)
    grad_u.copy_(grad_u.to(dtype))
    mask = kernel_mask(P, SEED)
    u, grad_A = KERNELS.down(x, A, mask), KERNELS.down_backward_(x, A, grad_u, mask, None, True)
    absolute = wide(x.abs(), A.abs(), grad_u.abs())
    assert_sums_of(u, skinny.down(*wide(x, A), P, SEED), skinny.down(*absolute[:2], P, SEED))
    expected = skinny.down_backward_(*wide(x, A, grad_u), P, SEED, None, True)
    assert_sums_of(grad_A, expected, skinny.down_backward_(*absolute, P, SEED, None, True))
    assert torch.equal(KERNELS.down(x, A, mask), u)
    assert torch.equal(KERNELS.down_backward_(x, A, grad_u, mask, None, True), grad_A)


@pytest.mark.parametrize("blocks", [0, 1, 2, 7, 64, 1000])
@pytest.mark.parametrize("programs", [0, 1, 3, 512, 5000])
def test_every_block_belongs_to_one_split(blocks, programs):
    each, splits = triton_kernels._split(blocks, programs)
    assert splits >= 1 and each >= 1
    assert (splits - 1) * each < max(blocks, 1) <= splits * each
    assert splits == 1 or splits * programs <= triton_kernels._PROGRAMS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_written_between_strided_rows(dtype):
    for tokens, width in SHAPES[2:4]:
        x, grad_x = (strided(tokens, width, dtype, frame=3) for _ in range(2))
        grad_u = strided(tokens, 3, frame=3)
        before = x.clone(), grad_u.clone()
        KERNELS.down_backward_(
            x, factor(3, width, dtype), grad_u, kernel_mask(P, SEED), grad_x, True
        )
        assert all(is_framed(part, 3) for part in (x, grad_x, grad_u))
        assert torch.equal(x, before[0]) and torch.equal(grad_u, before[1])


class TestThroughTheLayers:
    """What picks these products, and goes on with their float32 results."""

    @pytest.fixture
    def called(self, monkeypatch, use_triton):
        """Names of the products that were called."""
        names = []
        for name in ("down", "down_backward_", "drop"):
            original = getattr(TritonKernels, name)

            def spy(self, *args, _name=name, _original=original):
                names.append(_name)
                return _original(self, *args)

            monkeypatch.setattr(TritonKernels, name, spy)
        use_triton()
        names.clear()
        return names

    @pytest.mark.parametrize("factors", [None, torch.float32], ids=["same", "float32 factors"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_forward_and_backward_of_two_layers_under_one_mask(self, called, dtype, factors):
        tokens, width, outs, ranks = 21, 40, (24, 9), (4, 2)
        x = torch.randn(3, tokens // 3, width).to(dtype)
        weights = [(torch.randn(out, width) / width**0.5).to(dtype) for out in outs]
        As = [(torch.randn(r, width) / 8).to(factors or dtype) for r in ranks]
        Bs = [torch.randn(*shape).to(factors or dtype) for shape in zip(outs, ranks, strict=True)]
        gs = [torch.randn(3, tokens // 3, out).to(dtype) for out in outs]

        def run(convert):
            leaves = [convert(leaf).requires_grad_() for leaf in (x, *As, *Bs)]
            layers = [
                LinearOperands(convert(W0), None, [LowRankTerm(A, B, 0.7, P, SEED)])
                for W0, A, B in zip(weights, leaves[1:3], leaves[3:], strict=True)
            ]
            hs = low_rank_linears(leaves[0], layers)
            torch.autograd.backward(hs, [convert(g) for g in gs])
            return [*hs, *(leaf.grad for leaf in leaves)], leaves

        got, leaves = run(lambda tensor: tensor.clone().to(DEVICE))
        assert called == ["down", "down_backward_"]
        expected, _ = run(lambda tensor: tensor.double())
        assert [g.dtype for g in got] == [dtype, dtype, *(leaf.dtype for leaf in leaves)]
        for one, other in zip(got, expected, strict=True):
            assert largest_error(one.cpu(), other) <= GRADIENT_TOLERANCE[dtype]

    def test_a_layer_that_nothing_came_back_for(self, called):
        x = torch.randn(6, 8, device=DEVICE, dtype=torch.bfloat16)
        layers = []
        for _ in range(2):
            W0, A, B = (torch.randn(*s, device=DEVICE) for s in ((5, 8), (2, 8), (5, 2)))
            A, B = A.requires_grad_(), B.requires_grad_()
            layers.append(LinearOperands(W0.to(x.dtype), None, [LowRankTerm(A, B, 1.0, P, SEED)]))
        low_rank_linears(x, layers)[0].sum().backward()
        assert called == ["down", "down_backward_"]
        assert layers[0].terms[0].A.grad.abs().sum() > 0 and layers[1].terms[0].B.grad is None

    def test_torch_s_own_products_run_where_nothing_is_dropped(self, called):
        x, A = torch.randn(5, 8, device=DEVICE), torch.randn(3, 8, device=DEVICE)
        u = skinny.down(x, A)
        skinny.down_backward_(x, A, torch.ones_like(u), 0.0, None, torch.zeros_like(x), True)
        assert called == []

    def test_torch_s_own_products_run_under_compile(self, called, monkeypatch):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        x, A = torch.randn(5, 8, device=DEVICE), torch.randn(3, 8, device=DEVICE)
        skinny.down(x, A, P, SEED)
        apply_keep_mask(x, P, SEED)
        assert called == []

    def test_other_dtypes_and_strides_run_in_torch(self, called):
        A = torch.randn(3, 8, device=DEVICE)
        skinny.down(torch.randn(5, 8, device=DEVICE, dtype=torch.float64), A, P, SEED)
        if not IS_INTERPRETED:  # `takes` is replaced there
            skinny.down(torch.randn(8, 5, device=DEVICE).t(), A, P, SEED)
        assert called == []

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_apply_keep_mask_gives_the_bits_that_torch_gives(self, called, dtype, monkeypatch):
        x = torch.randn(3, 7, 20).to(dtype).to(DEVICE)
        dropped = apply_keep_mask(x, P, SEED)
        assert called == ["drop"] and dropped.shape == x.shape
        monkeypatch.setattr(gpu_kernels, "takes", lambda x: False)
        expected = apply_keep_mask(x, P, SEED)
        assert torch.equal(dropped == 0, expected == 0)
        if dtype is torch.bfloat16 and IS_INTERPRETED:
            assert_rounded(dropped, wide(expected)[0])
        else:
            assert torch.equal(dropped, expected)

    def test_a_frozen_down_projection_wants_dx_alone(self, called):
        x = torch.randn(6, 8, device=DEVICE).requires_grad_()
        W0, A, B = (torch.randn(*shape, device=DEVICE) for shape in ((5, 8), (2, 8), (5, 2)))
        (h,) = low_rank_linears(
            x, [LinearOperands(W0, None, [LowRankTerm(A, B.requires_grad_(), 0.7, P, SEED)])]
        )
        h.sum().backward()
        assert called == ["down", "down_backward_"]
        ones = torch.ones(6, 5, dtype=torch.float64)
        low_rank = skinny.drop_elements(
            0.7 * ones @ B.cpu().detach().double() @ wide(A)[0], P, SEED
        )
        expected = ones @ wide(W0)[0] + low_rank
        assert largest_error(x.grad.cpu(), expected) <= GRADIENT_TOLERANCE[torch.float32]

    def test_the_trial_passes_and_finds_a_wrong_result(self, called, monkeypatch):
        assert gpu_kernels._drops_what_torch_drops(KERNELS, DEVICE, torch.bfloat16)
        monkeypatch.setattr(TritonKernels, "down", lambda self, x, A, mask: x.float() @ A.t())
        assert not gpu_kernels._drops_what_torch_drops(KERNELS, DEVICE, torch.bfloat16)


def test_the_parts_of_a_factor_see_one_mask():
    x, A = torch.ones(9, 12, device=DEVICE), torch.ones(130, 12, device=DEVICE)
    u = KERNELS.down(x, A, kernel_mask(0.5, SEED))
    assert u.eq(u[:, :1]).all() and u.ne(u[:1]).any()
