"""Which of the implementations of the four products runs."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from lorakit.ops import skinny
from lorakit.ops.native import compiled_library, cpu_kernels
from tolerances import TOLERANCE, largest_error

CPU = torch.device("cpu")
LARGE = (torch.float32, torch.bfloat16)
SEED = torch.tensor(2**62 + 77)
THIN_TOLERANCE = TOLERANCE[torch.float32]


@pytest.fixture
def called(monkeypatch):
    """Names of the compiled products that were called."""
    names = []
    if cpu_kernels.load() is None:
        pytest.skip(f"no compiled products: {compiled_library.unavailable()}")
    for name in ("down", "up_", "up_backward", "down_backward_", "drop"):
        original = getattr(cpu_kernels.CpuKernels, name)

        def spy(*args, _name=name, _original=original):
            names.append(_name)
            return _original(*args)

        monkeypatch.setattr(cpu_kernels.CpuKernels, name, spy)
    return names


def run(x, factor_dtype=None):
    """Call all four and return their results."""
    dtype = factor_dtype or x.dtype
    torch.manual_seed(1)
    A, B = (torch.randn(3, x.shape[1], dtype=torch.float32), torch.randn(6, 3, dtype=torch.float32))
    A, B = A.to(dtype), B.to(dtype)
    u = skinny.down(x, A, 0.25, SEED)
    h = torch.zeros(x.shape[0], 6, dtype=x.dtype)
    skinny.up_(h, u, B, 0.5)
    grad_u = torch.empty_like(u)
    grad_B = skinny.up_backward(h, u, B, 0.5, grad_u, True)
    grad_x = torch.zeros_like(x)
    grad_A = skinny.down_backward_(x, A, grad_u, 0.25, SEED, grad_x, True)
    return u, h, grad_u, grad_B, grad_x, grad_A


@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_float32_and_bfloat16_on_a_cpu_run_compiled(called, dtype):
    run(torch.randn(5, 8).to(dtype))
    assert called == ["down", "up_", "up_backward", "down_backward_"]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_torch_s_defaults_do_not_matter(called, default):
    # What the C writes is float32 on the CPU, whatever new tensors are by default.
    x = torch.randn(50, 40)
    expected = run(x)
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            u = skinny.down(x, torch.ones(3, 40, device="cpu", dtype=torch.float32))
            dropped = skinny.drop_elements(x, 0.25, SEED)
    finally:
        torch.set_default_dtype(torch.float32)
    assert u.dtype == torch.float32 and u.device == dropped.device == CPU
    torch.set_default_dtype(default)
    try:
        got = run(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes_run_in_torch(called, dtype):
    run(torch.randn(5, 8).to(dtype))
    assert called == []


def test_the_meta_device_runs_in_torch(called):
    u = skinny.down(torch.empty(5, 8, device="meta"), torch.empty(3, 8, device="meta"))
    assert u.shape == (5, 3) and called == []


def test_fake_tensors_go_the_way_of_real_ones(called):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, A = torch.empty(5, 8), torch.empty(3, 8)
        u = skinny.down(x, A)
        assert (u.shape, u.dtype) == ((5, 3), torch.float32)
    assert called == ["down"]


def test_columns_that_are_not_adjacent_run_in_torch(called):
    x = torch.randn(8, 5).t()
    A = torch.randn(3, 8)
    u = skinny.down(x, A, 0.25, SEED)
    assert called == []
    expected = skinny.down(x.double(), A.double(), 0.25, SEED)
    assert largest_error(u, expected) <= THIN_TOLERANCE


@pytest.mark.parametrize("factors", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_factors_of_any_dtype(called, factors):
    x = torch.randn(5, 8)
    got = run(x, factor_dtype=factors)
    assert len(called) == 4
    wide = run(x.double(), factor_dtype=factors)
    for one, other in zip(got, wide, strict=True):
        # Torch's own path rounds the factors to the activation's dtype; these are exact there.
        assert largest_error(one, other) <= 1e-6 if factors is torch.float64 else 2e-6


@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_torch_s_own_operations_give_the_same_results(called, dtype, monkeypatch):
    x = torch.randn(50, 40).to(dtype)
    compiled = run(x)
    monkeypatch.setattr(cpu_kernels, "load", lambda: None)
    eager = run(x)
    for one, other in zip(compiled, eager, strict=True):
        assert largest_error(one, other) <= 2 * TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_tracing_records_torch_s_own_operations(called):
    # What C writes is invisible to a trace, which would give the same u for every input.
    A = torch.randn(3, 8)
    traced = torch.jit.trace(lambda x: skinny.down(x, A), torch.randn(5, 8))
    x = torch.randn(5, 8)
    assert torch.equal(traced(x), x @ A.t())
    recorded = make_fx(lambda x: skinny.down(x, A))(torch.randn(5, 8))
    assert torch.equal(recorded(x), x @ A.t())


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(("r", "in_c"), [(8, True), (32, False)])
def test_thick_ranks_run_in_torch_and_give_the_same(called, monkeypatch, dropout, r, in_c):
    monkeypatch.setattr(skinny, "_multiplies_bfloat16", lambda: True)
    seed = SEED if dropout else None
    for dtype in LARGE:
        x, h = torch.randn(50, 40).to(dtype), torch.randn(50, 60).to(dtype)
        A, B = torch.randn(r, 40) * 0.1, torch.randn(60, r) * 0.1
        wide = [tensor.double() for tensor in (x, h, A, B)]
        called.clear()
        results = [_four(x, h, A, B, dropout, seed) for x, h, A, B in ((x, h, A, B), wide)]
        assert [name for name in called if name != "drop"] == (
            ["down", "up_", "up_backward", "down_backward_"] if in_c else []
        )
        for one, other in zip(*results, strict=True):
            assert largest_error(one, other) <= 4 * TOLERANCE[dtype]


def _four(x, h, A, B, dropout, seed):
    u = skinny.down(x, A, dropout, seed)
    added = h.clone()
    skinny.up_(added, u, B, 0.5)
    grad_u, grad_x = torch.empty_like(u), torch.zeros_like(x)
    grad_B = skinny.up_backward(h, u, B, 0.5, grad_u, True)
    grad_A = skinny.down_backward_(x, A, grad_u, dropout, seed, grad_x, True)
    return u, added, grad_u, grad_B, grad_A, grad_x


def test_without_bfloat16_instructions_thick_ranks_stay_in_c(called, monkeypatch):
    monkeypatch.setattr(skinny, "_multiplies_bfloat16", lambda: False)
    skinny.down(torch.randn(5, 40).bfloat16(), torch.randn(64, 40))
    assert called == ["down"]
