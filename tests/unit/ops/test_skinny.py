"""The four products and the drop: the compiled C against torch's own operations in float64."""

import ctypes
import subprocess

import pytest
import torch

from lorakit.ops import keep_mask, skinny
from lorakit.ops.dropout_mask import kernel_mask
from lorakit.ops.native import compiled_library, cpu_kernels, openmp
from tolerances import TOLERANCE

CPU = torch.device("cpu")
TOKENS = (0, 1, 7, 16, 17, 100, 300)  # 300 is more than two strips
# 57 leaves more than half a pair of vectors over, for 8 lanes and for 16; 256 is a whole chunk.
WIDTHS = (1, 3, 57, 256, 261, 514)
RANKS = (1, 3, 8, 24, 33, 64)
LARGE = (torch.float32, torch.bfloat16)
SEED = torch.tensor(2**62 + 77)

# What is thin stays float32 for bfloat16 activations too, and its sums are made in float32.
THIN_TOLERANCE = TOLERANCE[torch.float32]
# A bfloat16 activation is rounded once, after the sum.
HALF_ROUNDING = 2**-8


@pytest.fixture(scope="module")
def wide_lanes(tmp_path_factory):
    """The same C with the vector length of AVX-512, which gcc lowers to what this machine has."""
    if cpu_kernels.load() is None:
        return None
    with pytest.MonkeyPatch.context() as patch:
        flags = (*compiled_library._FLAGS, "-DLANES=16", "-Wno-psabi")
        patch.setattr(compiled_library, "_FLAGS", flags)
        found = compiled_library._compiler(), openmp.runtime()
        path = compiled_library._compile(*found, tmp_path_factory.mktemp("lanes"), "wide")
    return cpu_kernels.CpuKernels(ctypes.CDLL(str(path)))


@pytest.fixture(params=["native", "16 lanes"])
def kernels(request, wide_lanes):
    if cpu_kernels.load() is None:
        pytest.skip(f"no compiled products: {compiled_library.unavailable()}")
    return cpu_kernels.load() if request.param == "native" else wide_lanes


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def strided(rows, width, dtype=torch.float32, frame=torch.nan):
    """Return random rows that lie 5 elements apart in a larger tensor filled with `frame`."""
    whole = torch.full((rows, width + 5), frame, dtype=dtype)
    part = whole[:, 2 : 2 + width]
    part.copy_(torch.randn(rows, width))
    return part


def copied(x):
    """Return a copy that keeps the strides."""
    return strided(*x.shape, dtype=x.dtype).copy_(x)


def assert_sums_of(got, expected, sizes):
    """Compare sums of products with float64; `sizes` are the sums of the absolute products."""
    assert got.shape == expected.shape and got.dtype == torch.float32
    assert ((got.double() - expected).abs() <= THIN_TOLERANCE * sizes).all()


def assert_rounded_once(got, expected):
    """Compare a large activation in its own dtype with float64."""
    exact = THIN_TOLERANCE * expected.abs().max().clamp_min(1e-30) if expected.numel() else 0
    half = HALF_ROUNDING * expected.abs() if got.dtype == torch.bfloat16 else 0
    assert got.shape == expected.shape
    assert ((got.double() - expected).abs() <= exact + half).all()


def cases(r):
    """Yield every second pair of tokens and width; ranks of the other parity get the other half.

    So each two of tokens, width and rank meet.
    """
    for i, tokens in enumerate(TOKENS):
        for j, width in enumerate(WIDTHS):
            if (i + j + r) % 2:
                continue
            torch.manual_seed(1000 * tokens + width)
            yield tokens, width, torch.randn(r, width) / 8


@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_down(kernels, dtype, p, r):
    seed = SEED if p else None
    for tokens, width, A in cases(r):
        x = strided(tokens, width, dtype)
        got = kernels.down(x, A, kernel_mask(p, seed))
        wide = x.double(), A.double()
        sizes = skinny.down(wide[0].abs(), wide[1].abs(), p, seed)
        assert_sums_of(got, skinny.down(*wide, p, seed), sizes)


@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_up(kernels, dtype, r):
    for tokens, width, B in cases(r):
        B = B.t().contiguous()
        h, u = strided(tokens, width, dtype), strided(tokens, r)
        expected = h.double()
        skinny.up_(expected, u.double(), B.double(), 0.7)
        kernels.up_(h, u, B, 0.7)
        assert_rounded_once(h, expected)


@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_add_is_down_and_up_in_one(kernels, dtype, p, r):
    mask = kernel_mask(p, SEED if p else None)
    for tokens, width, A in cases(r):
        B = torch.randn(9, r)
        x, h = strided(tokens, width, dtype), strided(tokens, 9, dtype)
        expected = copied(h)
        kernels.up_(expected, kernels.down(x, A, mask), B, 0.7)
        kernels.add_(h, x, A, B, 0.7, mask)
        assert torch.equal(h, expected)


@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize("needs_B", [True, False])
@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_up_backward(kernels, dtype, needs_B, r):
    for tokens, width, B in cases(r):
        B = B.t().contiguous()
        g, u = strided(tokens, width, dtype), strided(tokens, r)
        wide = g.double(), u.double(), B.double()
        grad_u, expected_u = strided(tokens, r), torch.empty_like(wide[1])
        expected_B = skinny.up_backward(*wide, 0.7, expected_u, needs_B)
        sizes_u = torch.empty_like(expected_u)
        sizes_B = skinny.up_backward(*(t.abs() for t in wide), 0.7, sizes_u, needs_B)
        grad_B = kernels.up_backward(g, u, B, 0.7, grad_u, needs_B)
        assert_sums_of(grad_u, expected_u, sizes_u)
        assert (grad_B is None) == (not needs_B)
        if needs_B:
            assert_sums_of(grad_B, expected_B, sizes_B)


@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", LARGE, ids=str)
@pytest.mark.parametrize("wanted", ["both", "x", "A"])
def test_down_backward(kernels, wanted, dtype, p, r):
    seed = SEED if p else None
    needs_x, needs_A = wanted != "A", wanted != "x"
    for tokens, width, A in cases(r):
        x, grad_u = strided(tokens, width, dtype), strided(tokens, r)
        grad_x = strided(tokens, width, dtype) if needs_x else None
        wide = x.double(), A.double(), grad_u.double()
        expected_x = grad_x.double() if needs_x else None
        expected_A = skinny.down_backward_(*wide, p, seed, expected_x, needs_A)
        sizes_A = skinny.down_backward_(*(t.abs() for t in wide), p, seed, None, needs_A)
        grad_A = kernels.down_backward_(x, A, grad_u, kernel_mask(p, seed), grad_x, needs_A)
        if needs_x:
            assert_rounded_once(grad_x, expected_x)
        assert (grad_A is None) == (not needs_A)
        if needs_A:
            assert_sums_of(grad_A, expected_A, sizes_A)


@pytest.mark.parametrize("p", [0.1, 0.9])
@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_drop(kernels, dtype, p):
    for tokens in TOKENS:
        for width in WIDTHS:
            x = strided(tokens, width, dtype)
            got = kernels.drop(x, kernel_mask(p, SEED))
            assert got.dtype == dtype and got.is_contiguous()
            assert_rounded_once(got, skinny.drop_elements(x.double(), p, SEED))


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345, 2**63 - 2])
@pytest.mark.parametrize("width", [1, 5, 255, 256, 257, 259, 600])
@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_every_product_sees_the_bits_of_keep_mask(kernels, dtype, width, seed):
    # With A the identity, down gives drop(x) itself, and its backward the mask on dL/du.
    p, tokens, seed = 0.5, 40, torch.tensor(seed)
    expected = keep_mask((tokens, width), p, seed, CPU)
    x = strided(tokens, width, dtype).fill_(1)
    identity, mask = torch.eye(width), kernel_mask(p, seed)
    assert torch.equal(kernels.drop(x, mask) != 0, expected)
    assert torch.equal(kernels.down(x, identity, mask) != 0, expected)
    for needs_A in (True, False):  # the words are those that staged x, or are made for grad_x
        grad_x = strided(tokens, width, dtype).zero_()
        ones = torch.ones(tokens, width)
        grad_A = kernels.down_backward_(x, identity, ones, mask, grad_x, needs_A)
        assert torch.equal(grad_x != 0, expected)
    ones = torch.ones(tokens, 1)
    grad_A = kernels.down_backward_(x, torch.ones(1, width), ones, mask, None, True)
    assert torch.equal(grad_A[0], 2.0 * expected.sum(0))


def everything(kernels, dtype, tokens, width, r, p):
    """Return all that the products compute, from the same numbers each time."""
    torch.manual_seed(3)
    mask = kernel_mask(p, SEED if p else None)
    x, A, B = strided(tokens, width, dtype), torch.randn(r, width), torch.randn(width, r)
    u = kernels.down(x, A, mask)
    h, grad_u, grad_x = strided(tokens, width, dtype), strided(tokens, r), copied(x)
    kernels.up_(h, u, B, 0.5)
    grad_B = kernels.up_backward(h, u, B, 0.5, grad_u, True)
    grad_A = kernels.down_backward_(x, A, grad_u, mask, grad_x, True)
    return [u, h, grad_u, grad_B, grad_A, grad_x, kernels.drop(x, kernel_mask(0.3, SEED))]


@pytest.mark.parametrize("dtype", LARGE, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_results_do_not_depend_on_the_number_of_threads(kernels, dtype, p, threads):
    for tokens, width, r in ((300, 514, 9), (129, 1100, 24), (17, 300, 1)):
        threads(1)
        alone = everything(kernels, dtype, tokens, width, r, p)
        for count in (2, 3):
            threads(count)
            together = everything(kernels, dtype, tokens, width, r, p)
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", LARGE, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("r", [1, 8, 33])
def test_nothing_is_written_between_strided_rows(kernels, r, dtype, p):
    # What is read there is NaN in the tests above, and would show in their results.
    def is_framed(part):
        whole = part._base
        return whole[:, :2].eq(3).all() and whole[:, 2 + part.shape[1] :].eq(3).all()

    mask = kernel_mask(p, SEED if p else None)
    for tokens, width, A in cases(r):
        large = [strided(tokens, width, dtype, frame=3) for _ in range(3)]
        u, grad_u = (strided(tokens, r, frame=3) for _ in range(2))
        x, h, grad_x = large
        kernels.up_(h, u, A.t(), 0.5)
        kernels.up_backward(h, u, A.t(), 0.5, grad_u, True)
        kernels.down_backward_(x, A, grad_u, mask, grad_x, True)
        assert all(is_framed(part) for part in (*large, u, grad_u)), (tokens, width)


DRIVER = r"""
#include <stdio.h>
#include "row_norms.c"
#include "skinny.c"
#include "up_backward.c"

/* Every buffer is exactly as large as the contract says, so that one step beyond it is seen. */
static void *buffer(long bytes) { return memset(malloc(bytes), 0, bytes); }

static void run(long tokens, long width, int r, int is_half, int is_on, int n) {
  dropout mask = {is_on, -20000, 1.5f, 0xFFFFFFFFFFFFFFFEull};
  long size = is_half ? 2 : 4, gap = 3, stride = width + gap, u_stride = r + gap;
  /* The last row ends without its gap. */
  long large = tokens ? ((tokens - 1) * stride + width) * size : 0;
  long thin = tokens ? ((tokens - 1) * u_stride + r) * 4 : 0;
  matrix x = {buffer(large), is_half, stride, tokens, width}, h = x, grad_x = x, out = x;
  h.data = buffer(large), grad_x.data = buffer(large), out.data = buffer(large);
  float *A = buffer(4 * r * width), *B = buffer(4 * r * width), *grad = buffer(4 * r * width);
  float *u = buffer(thin), *grad_u = buffer(thin);
  /* One group of all rows; or one of a single row, one of none, and one of the rest. */
  long first = n > 1 && tokens ? 1 : 0;
  group of_A[] = {{first, tokens, A, grad, 0, r, 1.0f, mask},
                  {first, first, A, grad, 0, r, 1.0f, mask},
                  {0, first, A, NULL, 0, r, 1.0f, mask}};
  group of_B[] = {{first, tokens, B, grad, 0, r, 0.5f, mask},
                  {first, first, B, grad, 0, r, 0.5f, mask},
                  {0, first, B, NULL, 0, r, 0.5f, mask}};
  int failed = lorakit_down(&x, of_A, n, u, u_stride);
  failed |= lorakit_up(&h, of_B, n, u, u_stride);
  failed |= lorakit_add(&x, &h, of_A, of_B, n);
  failed |= lorakit_up_backward(&h, of_B, n, u, u_stride, grad_u, u_stride);
  failed |= lorakit_down_backward(&x, of_A, n, grad_u, u_stride, &grad_x);
  failed |= lorakit_down_backward(&x, of_A, n, grad_u, u_stride, NULL);
  of_A->gradient = of_B->gradient = NULL;
  failed |= lorakit_up_backward(&h, of_B, n, u, u_stride, grad_u, u_stride);
  failed |= lorakit_down_backward(&x, of_A, n, grad_u, u_stride, &grad_x);
  /* Scaled rows; the first time with the low-rank term, apart, then in place without it. */
  float *of_columns = buffer(4 * width), *of_rows = buffer(4 * tokens);
  float *up = buffer(4 * r * tokens);
  group all = {0, tokens, B, grad, 0, r, 0.5f, mask};
  row_scale scaled = {of_columns, of_columns, out};
  row_scale_backward back = {of_columns, of_columns, x, out};
  for (int i = 0; i < 2; i++) {
    failed |= lorakit_up_scaled(&h, &all, u, u_stride, &scaled);
    failed |= lorakit_up_scaled_backward(&h, &all, u, u_stride, grad_u, u_stride, &back);
    scaled.bias = NULL, scaled.h = h, back.dots = NULL, back.out = h;
    all.r = 0, all.gradient = NULL;
  }
  failed |= lorakit_squared_row_norms(&x, A, up, r, 0.5f, of_rows);
  free(of_columns), free(of_rows), free(up);
  /* The same factors in 16 bits, in buffers of half the size. */
  void *half_A = buffer(2 * r * width), *half_B = buffer(2 * r * width);
  for (int i = 0; i < 3; i++) {
    of_A[i].thin = half_A, of_B[i].thin = half_B;
    of_A[i].thin_is_half = of_B[i].thin_is_half = 1;
  }
  failed |= lorakit_down(&x, of_A, n, u, u_stride);
  failed |= lorakit_up(&h, of_B, n, u, u_stride);
  addition prepared = {x, h, of_A, of_B, n};
  failed |= lorakit_add_prepared(&prepared, x.data, h.data);
  failed |= lorakit_drop(&x, &out, &mask);
  if (failed) exit(3);
  free(x.data), free(h.data), free(grad_x.data), free(out.data);
  free(A), free(B), free(grad), free(u), free(grad_u), free(half_A), free(half_B);
}

int main(void) {
  const long tokens[] = {TOKENS}, widths[] = {WIDTHS};
  const int ranks[] = {RANKS};
  int runs = 0;
  for (int i = 0; i < (int)(sizeof tokens / sizeof *tokens); i++)
    for (int j = 0; j < (int)(sizeof widths / sizeof *widths); j++)
      for (int k = 0; k < (int)(sizeof ranks / sizeof *ranks); k++)
        /* Half of the triples, so that each two of tokens, width and rank meet. */
        for (int way = (i + j + k) % 2 ? 8 : 0; way < 8; way++, runs++)
          run(tokens[i], widths[j], ranks[k], way & 1, way >> 1 & 1, way >> 2 ? 3 : 1);
  printf("%d", runs);
  return 0;
}
"""


@pytest.mark.slow(reason="runs the C with sanitizers")
@pytest.mark.parametrize("lanes", [8, 16])
def test_address_and_undefined_behaviour_sanitizers_find_nothing(lanes, tmp_path):
    compiler = compiled_library._compiler()
    if compiler is None:
        pytest.skip("there is no gcc")
    source, program = tmp_path / "driver.c", tmp_path / "driver"
    table = {"TOKENS": TOKENS[:-1], "WIDTHS": WIDTHS, "RANKS": RANKS}
    defined = [f"-D{name}={','.join(map(str, values))}" for name, values in table.items()]
    source.write_text(DRIVER, encoding="utf-8")
    flags = ["-O1", "-march=native", "-std=gnu11", "-fopenmp", "-g1", "-Wno-psabi"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += [f"-DLANES={lanes}", *defined, f"-I{compiled_library._SOURCES}"]
    command = [compiler, *flags, str(source), "-o", str(program)]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in build.stderr and "san" in build.stderr:
        pytest.skip("gcc came without its sanitizers")
    assert build.returncode == 0, build.stderr
    # Threads that wait in a loop take the cores from whatever else runs.
    environment = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    environment["ASAN_OPTIONS"] = "detect_leaks=1"
    done = subprocess.run([program], capture_output=True, text=True, check=False, env=environment)
    if "LeakSanitizer has encountered a fatal error" in done.stderr:  # no ptrace in a container
        environment["ASAN_OPTIONS"] = "detect_leaks=0"
        done = subprocess.run(
            [program], capture_output=True, text=True, check=False, env=environment
        )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 4 * (len(TOKENS) - 1) * len(WIDTHS) * len(RANKS)


def test_no_memory_is_an_error_and_not_a_crash(kernels):
    # The library's own functions return 1 where malloc fails.
    with pytest.raises(MemoryError, match="could not allocate"):
        kernels._call(lambda x: 1, cpu_kernels.matrix(torch.ones(2, 3)))
