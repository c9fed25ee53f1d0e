"""The products in Triton without a GPU: interpreted on the CPU, and compiled without being run.

Both happen in separate processes: Triton must be told to interpret before it is imported, and
compiling replaces its driver.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import forked

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

TESTS = Path(__file__).parents[3]
# The least of what GPUs since Ampere (compute capability 8.0) let one program use.
SHARED_BYTES = 99 * 1024
# A few registers may move to memory in the widest tile; more would be slow.
SPILLED_BYTES = 64


@pytest.mark.slow(reason="runs the GPU tests in the interpreter")
def test_what_a_gpu_would_run_in_the_interpreter(tmp_path):
    paths = [str(TESTS / "gpu" / name) for name in ("test_triton_kernels.py", "test_step.py")]
    options = ["-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}", "-k", "not wait"]
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *paths],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"OMP_NUM_THREADS": "1"},
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout


COMPILE = """
import json, subprocess, sys
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from lorakit.ops.triton import triton_kernels
from lorakit.ops.dropout_mask import kernel_mask

class NoGpu:
    # Triton keeps what it has compiled by device, so each capability is a separate device.
    capability = None
    def get_current_device(self):
        return self.capability
    def get_current_stream(self, device):
        return 0
    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

def compile_only(kernel, grid, arguments, **constants):
    made.append(kernel.warmup(*arguments, grid=grid, num_warps=triton_kernels._WARPS, **constants))

def compile_all(dtype, tokens, width, r, seed):
    made.clear()
    x = torch.empty(tokens, width, dtype=getattr(torch, dtype), device="meta")
    A, grad_u = (torch.empty(*shape, device="meta") for shape in ((r, width), (tokens, r)))
    kernels, mask = triton_kernels.TritonKernels(), kernel_mask(0.1, torch.tensor(seed))
    kernels.down(x, A, mask)
    kernels.down_backward_(x, A, grad_u, mask, torch.empty_like(x), True)
    kernels.drop(x, mask)
    return list(made)

def stack_bytes(kernel):
    tools, binary = Path(triton.__file__).parent / "backends/nvidia/bin", Path(sys.argv[2])
    binary.write_bytes(kernel.asm["cubin"])
    command = [str(tools / "cuobjdump"), "--dump-resource-usage", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(text.split("STACK:")[1].split()[0])

driver.set_active(NoGpu())
made, triton_kernels._launch = [], compile_only
for capability, dtype, tokens, width, r in json.loads(sys.argv[1]):
    NoGpu.capability = capability
    first = compile_all(dtype, tokens, width, r, 2**62 + 5)
    others = [compile_all(dtype, n, width, r, seed) for n, seed in ((1, -1), (16, 16), (17, 1))]
    print("REPORT " + json.dumps({
        "names": [kernel.name for kernel in first],
        "shared_bytes": max(kernel.metadata.shared for kernel in first),
        "stack_bytes": max(map(stack_bytes, first)),
        "compiled_once": all(a is b for other in others for a, b in zip(first, other)),
    }))
"""


@pytest.mark.slow(reason="compiles every kernel for several GPUs")
def test_they_compile_for_gpus(tmp_path):
    # (compute capability, dtype, tokens, width, r): the widest tiles, and rows of 1 and of 57
    # elements, which are no whole number of hash words.
    cases = [
        (80, "bfloat16", 4096, 4096, 64),
        (80, "float32", 33, 1, 32),
        (90, "float16", 100, 57, 3),
    ]
    words = (json.dumps(cases), tmp_path / "binary")
    done = forked.run(COMPILE, *words, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert len(lines) == len(cases)
    for report in (json.loads(line.removeprefix("REPORT ")) for line in lines):
        assert report["names"] == ["_down", "_down_backward", "_drop"]
        assert report["shared_bytes"] <= SHARED_BYTES
        assert report["stack_bytes"] <= SPILLED_BYTES
        # Neither the seed nor the number of tokens makes another kernel of it.
        assert report["compiled_once"]


def test_a_fake_tensor_is_taken_for_what_it_stands_for():
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from lorakit.ops.native import cpu_kernels
    from lorakit.ops.triton.triton_kernels import TritonKernels

    kernels = TritonKernels()
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, A = torch.empty(5, 8, device="cpu"), torch.empty(3, 8, device="cpu")
        u = kernels.down(x, A, cpu_kernels.dropout_arguments(0, 1.0, 7))
    assert (u.shape, u.dtype) == ((5, 3), torch.float32)
