"""What tests on a GPU share."""

import os
from importlib.util import find_spec

import pytest


@pytest.fixture
def use_triton(monkeypatch):
    """Return a function after which the products in Triton run: by themselves on a GPU.

    In Triton's interpreter they do for CPU tensors.
    """
    import torch

    from lorakit.ops.native import cpu_kernels
    from lorakit.ops.triton import gpu_kernels

    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def use():
        if os.environ.get("TRITON_INTERPRET") != "1":
            missing = {gpu_kernels.unavailable(torch.device("cuda", 0), dtype) for dtype in dtypes}
            assert missing == {None} or find_spec("triton") is None
            return
        from lorakit.ops.triton.triton_kernels import TritonKernels

        monkeypatch.setattr(cpu_kernels, "takes", lambda x: False)
        monkeypatch.setattr(gpu_kernels, "takes", lambda x: x.dtype in dtypes)
        monkeypatch.setattr(gpu_kernels, "load", lambda device, dtype: TritonKernels())

    return use
