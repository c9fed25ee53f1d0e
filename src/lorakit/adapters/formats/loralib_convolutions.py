"""Updates of loralib's `ConvLoRA`, read as updates of a convolution.

loralib keeps lora_A (r k, in k) and lora_B (out / g k, r k) for a kernel of k in each dimension and
g groups, and takes the numbers of their product, in the order they have in memory, for those of the
weight. The weight's rows are then made of k products with another k-th of lora_B's rows each, so
ΔW has a rank of up to r k², and its own factors are found by an SVD of it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lorakit.layers import KernelShape
from lorakit.layers.updates.sliced_update import in_blocks

WeightShapes = Mapping[str, Sequence[int]]


class ConvolutionUpdate(NamedTuple):
    """What a `ConvLoRA` adds to its weight, in factors of scaling 1."""

    A: Tensor
    """(R, in k); of each group's part of R only the columns of its channels are not zero."""
    B: Tensor
    """(out, R), in blocks where there are groups."""
    shape: KernelShape


def weight_shape(
    path: str, tensors: Mapping[str, Tensor], shapes: WeightShapes | None
) -> Sequence[int] | None:
    """Return the shape of a `ConvLoRA`'s weight; None for any other layer."""
    weight = tensors.get(f"{path}.conv.weight")
    return tuple(weight.shape) if weight is not None else (shapes or {}).get(path)


def convolution_update(
    path: str, A: Tensor, B: Tensor, shape: Sequence[int], lora_alpha: float
) -> ConvolutionUpdate | str:
    """Return factors with the product of a `ConvLoRA`'s, or what is wrong with it.

    Args:
        path: Of the module, for an error.
        A: (r k, in k).
        B: (out / g k, r k).
        shape: Of the weight, (out, in / g, k, …).
        lora_alpha: What the layer was built with; the scaling is lora_alpha / r.

    Source: microsoft/LoRA, loralib/layers.py, `ConvLoRA`.
    """
    given = f"{path} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}"
    if len(shape) not in (3, 4, 5) or len(set(shape[2:])) > 1 or min(shape) < 1:
        return f"{path} has a weight {tuple(shape)}, no convolution's with one size of kernel"
    if A.ndim != 2 or B.ndim != 2:
        return f"{given}, no two matrices"
    k, channels = shape[-1], shape[1]
    in_channels, too_many = divmod(A.shape[1], k)
    groups = in_channels // channels
    fits = not too_many and groups > 0 and groups * channels == in_channels
    fits = fits and A.shape[0] % k == 0 and A.shape[0] == B.shape[1] and shape[0] % groups == 0
    if not fits or B.shape[0] != shape[0] // groups * k:
        return f"{given}, which do not fit a ConvLoRA with a weight {tuple(shape)}"
    if B.shape[0] * A.shape[1] != shape[0] * channels * k ** (len(shape) - 2):
        return (
            f"{given}, whose product has not as many numbers as the weight {tuple(shape)}: loralib "
            "itself cannot run such a layer"
        )
    scaling = lora_alpha * k / A.shape[0]
    delta = scaling * (B.double() @ A.double()).view(groups, shape[0] // groups, -1)
    dtype = torch.promote_types(A.dtype, torch.float32)
    up, down = _factors(delta)
    kernel = KernelShape(in_channels, tuple(shape[2:]), groups)
    return ConvolutionUpdate(
        _own_channels(down).to(dtype),
        in_blocks(up.flatten(0, 1), (True,) * groups).to(dtype),
        kernel,
    )


def _factors(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return B (g, out / g, R) and A (g, R, in k / g) with B A = ΔW, of the smallest such R.

    A has orthonormal rows, so that an update that is zero can be trained.
    """
    U, S, V = torch.linalg.svd(delta, full_matrices=False)
    # What is below the rounding of the largest one is zero.
    smallest = S[:, :1] * max(delta.shape[1:]) * torch.finfo(delta.dtype).eps
    rank = max(1, int((smallest < S).sum(1).max()))
    return U[..., :rank] * S[:, None, :rank], V[:, :rank]


def _own_channels(down: Tensor) -> Tensor:
    """Return the A of all groups, each in the columns of its own channels, (g R, in k)."""
    return torch.block_diag(*down)
