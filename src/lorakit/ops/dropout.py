"""Dropout by a mask that is never stored, on the kernels that suit the activation."""

# torch gives the parameters of Function.backward no names.
# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.ops.dropout_mask import exact_drop_probability, keep_mask, kernel_mask
from lorakit.ops.native import cpu_kernels
from lorakit.ops.triton import gpu_kernels


def apply_keep_mask(x: Tensor, drop_probability: float, seed: Tensor) -> Tensor:
    """Return x with dropped elements zero and kept ones divided by the keep probability.

    Args:
        x: Any shape, floating point.
        drop_probability: In [0, 1); the scaling uses the exact probability of the mask.
        seed: 0-dimensional int64 tensor; the same seed gives the same mask.

    Returns: Same shape and dtype as x.
    Source: Srivastava et al. 2014, JMLR 15, in its inverted form.
    """
    kernels = None if x.requires_grad else kernels_for(x, drops=True)
    if kernels is not None and x.is_contiguous() and x.numel():
        rows = x.reshape(-1, x.shape[-1])
        return kernels.drop(rows, kernel_mask(drop_probability, seed)).view(x.shape)
    mask = keep_mask(x.shape, drop_probability, seed, x.device)
    # 1 / keep rounded to bfloat16 is off by up to 0.4 %; a scalar factor is not rounded to it.
    return torch.where(mask, x, 0).mul_(1.0 / (1.0 - exact_drop_probability(drop_probability)))


def drop(x: Tensor, drop_probability: float, seed: Tensor) -> Tensor:
    """Compute `apply_keep_mask`, with a gradient that recomputes the mask from its seed.

    Memory: saves only the seed.
    """
    return _Drop.apply(x, drop_probability, seed)  # type: ignore[return-value]  # `apply` has no types


class _Drop(torch.autograd.Function):
    """Multiply by the mask in forward and in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, drop_probability: float, seed: Tensor) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.drop_probability = drop_probability
        return apply_keep_mask(x.detach(), drop_probability, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (seed,) = ctx.saved_tensors
        return apply_keep_mask(g, ctx.drop_probability, seed), None, None


def kernels_for(x: Tensor, drops: bool = False) -> Any:
    """Return the compiled products that can read this activation, or None.

    Args:
        x: The activation.
        drops: Whether they have to drop elements; on a GPU torch's products are as fast if not.
    """
    if torch.compiler.is_compiling():
        return None
    if cpu_kernels.takes(x):
        return cpu_kernels.load()
    return gpu_kernels.load(x.device, x.dtype) if drops and gpu_kernels.takes(x) else None
