"""Loading the products of `triton_kernels.py`: imported and tested at the first use.

Triton compiles at run time, which needs a C compiler and a supported GPU. If anything is missing,
only speed is lost: `skinny.py` uses torch operations.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorakit.ops.dropout_mask import is_captured, keep_mask, kernel_mask
from lorakit.ops.native.cpu_kernels import can_be_read_at_its_address

if TYPE_CHECKING:
    from lorakit.ops.triton.triton_kernels import TritonKernels

_LARGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(x: Tensor) -> bool:
    """Return whether the Triton products can read this activation.

    False while a CUDA graph is captured, which would repeat one dropout mask at every replay.
    """
    return (
        x.dtype in _LARGE_DTYPES
        and x.device.type == "cuda"
        and can_be_read_at_its_address(x)
        and not is_captured(x.device)
    )


@cache
def load(device: torch.device, dtype: torch.dtype) -> TritonKernels | None:
    """Return the Triton products, or None if they are unavailable; `unavailable` says why."""
    if unavailable(device, dtype):
        return None
    from lorakit.ops.triton.triton_kernels import TritonKernels

    return TritonKernels()


@cache
def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the Triton products cannot be used on this device, or None if they can.

    One of them is tested once per device, which waits for the GPU. LORAKIT_TRITON_KERNELS=0 turns
    them off.
    """
    if os.environ.get("LORAKIT_TRITON_KERNELS") == "0":
        return "LORAKIT_TRITON_KERNELS=0 turns them off"
    try:
        from lorakit.ops.triton.triton_kernels import TritonKernels
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    try:
        is_right = _drops_what_torch_drops(TritonKernels(), device, dtype)
    except Exception as error:  # anything that a compiler, a driver or a launch raises
        return f"a trial of them failed: {type(error).__name__}: {str(error)[:500]}"
    return None if is_right else "a trial of them gave a wrong result"


def _drops_what_torch_drops(
    kernels: TritonKernels, device: torch.device, dtype: torch.dtype
) -> bool:
    tokens, width, seed = 40, 20, torch.tensor((1 << 62) + 5, device="cpu")
    ones = torch.ones(tokens, width, device=device, dtype=dtype)
    identity = torch.eye(width, device=device)
    u = kernels.down(ones, identity, kernel_mask(0.5, seed))
    return torch.equal(u, 2.0 * keep_mask((tokens, width), 0.5, seed, device))
