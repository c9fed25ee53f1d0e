"""Which activations the products in Triton are asked to read, and what happens without them."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lorakit.ops import apply_keep_mask, draw_seed, dropout_mask, skinny
from lorakit.ops.native import cpu_kernels
from lorakit.ops.triton import gpu_kernels

CPU, META = torch.device("cpu"), torch.device("meta")
SEED = torch.tensor(2**62 + 77)
P = 0.25


@pytest.fixture
def forgetful():
    """`load` and `unavailable` without what they found before, before and after."""
    for found in (gpu_kernels.load, gpu_kernels.unavailable):
        found.cache_clear()
    yield
    for found in (gpu_kernels.load, gpu_kernels.unavailable):
        found.cache_clear()


@pytest.fixture
def kernels(monkeypatch):
    """Products that note how they are called, for CPU tensors that stand for a GPU's."""
    calls = []

    class Kernels:
        def down(self, x, A, mask):
            calls.append(("down", mask.threshold, mask.seed))
            return torch.zeros(x.shape[0], A.shape[0])

        def down_backward_(self, x, A, grad_u, mask, grad_x, needs_A):
            calls.append(("down_backward_", mask.threshold, mask.seed))
            return torch.zeros(A.shape) if needs_A else None

        def drop(self, x, mask):
            calls.append(("drop", mask.threshold, mask.seed))
            return x

    monkeypatch.setattr(cpu_kernels, "takes", lambda x: False)
    monkeypatch.setattr(gpu_kernels, "takes", lambda x: True)
    monkeypatch.setattr(gpu_kernels, "load", lambda device, dtype: Kernels())
    return calls


def use_all(drop_probability, seed, dtype=torch.bfloat16):
    x, A, B = (torch.randn(*shape).to(dtype) for shape in ((5, 8), (3, 8), (6, 3)))
    u = skinny.down(x, A, drop_probability, seed)
    h = torch.ones(5, 6, dtype=dtype)
    skinny.up_(h, u, B, 0.5)
    grad_u = torch.empty_like(u)
    grad_B = skinny.up_backward(h, u, B, 0.5, grad_u, True)
    skinny.down_backward_(x, A, grad_u, drop_probability, seed, torch.zeros_like(x), True)
    return u, h, grad_u, grad_B


def test_they_run_where_elements_are_dropped(kernels):
    u, h, grad_u, grad_B = use_all(P, SEED)
    threshold = -(1 << 15) + (1 << 14)
    seed = SEED.item()
    assert kernels == [("down", threshold, seed), ("down_backward_", threshold, seed)]
    # Their float32 u is no trouble to torch's products with bfloat16 activations.
    assert (u.dtype, h.dtype, grad_u.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert grad_B.shape == (6, 3) and h.eq(1).all()


def test_torch_s_own_products_run_where_nothing_is_dropped(kernels):
    u, *_ = use_all(0.0, None)
    assert kernels == [] and u.dtype == torch.bfloat16


def test_a_u_that_torch_made_goes_on_in_torch(kernels):
    x, A = torch.randn(5, 8).bfloat16(), torch.randn(3, 8).bfloat16()
    grad_u = torch.ones(5, 3, dtype=torch.bfloat16)
    grad_A = skinny.down_backward_(x, A, grad_u, P, SEED, None, True)
    assert [name for name, *_ in kernels] == ["drop"]
    assert grad_A.dtype == torch.bfloat16


def test_apply_keep_mask_uses_them_too(kernels):
    x = torch.ones(2, 3, 8)
    assert apply_keep_mask(x, P, SEED).shape == x.shape
    assert [name for name, *_ in kernels] == ["drop"]


def test_not_where_autograd_must_follow_or_nothing_is_there(kernels):
    apply_keep_mask(torch.ones(2, 8).requires_grad_(), P, SEED)
    apply_keep_mask(torch.ones(0, 8), P, SEED)
    apply_keep_mask(torch.ones(8, 2).t(), P, SEED)
    assert kernels == []


def test_not_under_compile(kernels, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    use_all(P, SEED)
    apply_keep_mask(torch.ones(2, 8), P, SEED)
    assert kernels == []


def stand_in(**changes):
    """Return what `takes` asks of a tensor on a GPU, with something changed."""
    x = {"dtype": torch.bfloat16, "device": torch.device("cuda", 0)} | changes
    return SimpleNamespace(**x)


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"dtype": torch.float32}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float64}, False),
        ({"device": CPU}, False),
        ({"device": META}, False),
    ],
    ids=str,
)
def test_which_activations_they_read(changes, taken, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "can_be_read_at_its_address", lambda x: True)
    assert gpu_kernels.takes(stand_in(**changes)) is taken
    monkeypatch.setattr(gpu_kernels, "can_be_read_at_its_address", lambda x: False)
    assert not gpu_kernels.takes(stand_in(**changes))


def test_not_while_a_cuda_graph_is_captured(monkeypatch):
    monkeypatch.setattr(gpu_kernels, "can_be_read_at_its_address", lambda x: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not gpu_kernels.takes(stand_in())
    assert gpu_kernels.is_captured(torch.device("cuda", 0)) and not gpu_kernels.is_captured(CPU)


def test_the_seed_is_copied_only_where_a_graph_would_repeat_it(monkeypatch):
    assert dropout_mask._operand(SEED, META) is SEED
    monkeypatch.setattr(dropout_mask, "is_captured", lambda device: True)
    assert dropout_mask._operand(SEED, META).device == META


def test_seeds_are_drawn_on_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        assert draw_seed().device == CPU


class TestWhyTheyCannotBeHad:
    def test_the_switch(self, forgetful, monkeypatch):
        monkeypatch.setenv("LORAKIT_TRITON_KERNELS", "0")
        reason = gpu_kernels.unavailable(CPU, torch.float32)
        assert reason == "LORAKIT_TRITON_KERNELS=0 turns them off"
        assert gpu_kernels.load(CPU, torch.float32) is None

    def test_no_triton(self, forgetful, monkeypatch):
        monkeypatch.setitem(sys.modules, "lorakit.ops.triton.triton_kernels", None)
        assert "triton cannot be imported: " in gpu_kernels.unavailable(CPU, torch.float32)
        assert gpu_kernels.load(CPU, torch.float32) is None

    @pytest.fixture
    def triton_kernels(self, monkeypatch):
        """A module instead of the real one."""
        module = SimpleNamespace(TritonKernels=lambda: None)
        monkeypatch.setitem(sys.modules, "lorakit.ops.triton.triton_kernels", module)
        return module

    def test_a_trial_that_fails(self, forgetful, triton_kernels):
        def fail():
            raise RuntimeError("Failed to find C compiler.")

        triton_kernels.TritonKernels = fail
        reason = gpu_kernels.unavailable(CPU, torch.float32)
        assert reason == "a trial of them failed: RuntimeError: Failed to find C compiler."

    @pytest.mark.parametrize("factor", [1.0, 2.0])
    def test_a_trial_that_computes(self, forgetful, triton_kernels, factor):
        class Kernels:
            trials = 0

            def down(self, x, A, mask):
                Kernels.trials += 1
                keep = dropout_mask.keep_mask(x.shape, 0.5, torch.tensor(mask.seed), CPU)
                return factor * (x * keep).float() @ A.t()

        triton_kernels.TritonKernels = Kernels
        expected = None if factor == 2.0 else "a trial of them gave a wrong result"
        assert gpu_kernels.unavailable(CPU, torch.float16) == expected
        assert isinstance(gpu_kernels.load(CPU, torch.float16), Kernels) is (expected is None)
        assert gpu_kernels.load(CPU, torch.float16) is gpu_kernels.load(CPU, torch.float16)
        assert Kernels.trials == 1


USE = """
import sys, torch
from lorakit.ops import LowRankTerm, draw_seed, low_rank_linear
A, B = torch.ones(2, 8).requires_grad_(), torch.ones(5, 2).requires_grad_()
term = LowRankTerm(A, B, 1.0, 0.5, draw_seed())
low_rank_linear(torch.ones(3, 8), torch.ones(5, 8), None, [term]).sum().backward()
print("triton" in sys.modules)
"""


@pytest.mark.slow(reason="imports torch in a new process")
def test_a_cpu_never_imports_triton():
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
