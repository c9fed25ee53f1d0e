"""Updates of loralib's `ConvLoRA`, converted to updates of a convolution.

loralib stores lora_A (r k, in k) and lora_B (out / g k, r k) for a kernel of k in each dimension
and g groups, and views their product, in memory order, as the weight. Each row of the weight then
consists of k products with different rows of lora_B, so ΔW has a rank of up to r k², and an SVD of
ΔW gives its factors.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lorakit.layers import KernelShape
from lorakit.layers.updates.sliced_update import in_blocks

WeightShapes = Mapping[str, Sequence[int]]


class ConvolutionUpdate(NamedTuple):
    """The update of a `ConvLoRA`, as factors with scaling 1."""

    A: Tensor
    """(R, in k); the rows of each group are zero outside the columns of its channels."""
    B: Tensor
    """(out, R), in blocks where there are groups."""
    shape: KernelShape


def weight_shape(
    path: str, tensors: Mapping[str, Tensor], shapes: WeightShapes | None
) -> Sequence[int] | None:
    """Return the shape of a `ConvLoRA`'s weight, or None for another layer."""
    weight = tensors.get(f"{path}.conv.weight")
    return tuple(weight.shape) if weight is not None else (shapes or {}).get(path)


def convolution_update(
    path: str, A: Tensor, B: Tensor, shape: Sequence[int], lora_alpha: float
) -> ConvolutionUpdate | str:
    """Return the update of a `ConvLoRA`, or a problem with it.

    Args:
        path: The module's path for error messages.
        A: (r k, in k).
        B: (out / g k, r k).
        shape: Shape of the weight, (out, in / g, k, …).
        lora_alpha: lora_alpha of the layer; the scaling is lora_alpha / r.

    Source: microsoft/LoRA, loralib/layers.py, `ConvLoRA`.
    """
    given = f"{path} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}"
    if len(shape) not in (3, 4, 5) or len(set(shape[2:])) > 1 or min(shape) < 1:
        return f"{path} has a weight {tuple(shape)}, not a convolution's with a cubic kernel"
    if A.ndim != 2 or B.ndim != 2:
        return f"{given}, not two matrices"
    k, channels = shape[-1], shape[1]
    in_channels, too_many = divmod(A.shape[1], k)
    groups = in_channels // channels
    fits = not too_many and groups > 0 and groups * channels == in_channels
    fits = fits and A.shape[0] % k == 0 and A.shape[0] == B.shape[1] and shape[0] % groups == 0
    if not fits or B.shape[0] != shape[0] // groups * k:
        return f"{given}, which do not fit a ConvLoRA with a weight {tuple(shape)}"
    if B.shape[0] * A.shape[1] != shape[0] * channels * k ** (len(shape) - 2):
        return (
            f"{given}, whose product has another number of elements than the weight "
            f"{tuple(shape)}: loralib itself cannot run such a layer"
        )
    scaling = lora_alpha * k / A.shape[0]
    delta = scaling * (B.double() @ A.double()).view(groups, shape[0] // groups, -1)
    dtype = torch.promote_types(A.dtype, torch.float32)
    up, down = _factors(delta)
    kernel = KernelShape(in_channels, tuple(shape[2:]), groups)
    # Each group's A goes into the columns of its channels, (g R, in k).
    A_of_groups: Tensor = cast(Any, torch).block_diag(*down)
    return ConvolutionUpdate(
        A_of_groups.to(dtype),
        in_blocks(up.flatten(0, 1), (True,) * groups).to(dtype),
        kernel,
    )


def _factors(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return B (g, out / g, R) and A (g, R, in k / g) with B A = ΔW, of the smallest such R.

    A has orthonormal rows, so that an update of zero can be trained.
    """
    svd: tuple[Tensor, Tensor, Tensor] = cast(Any, torch.linalg).svd(delta, full_matrices=False)
    U, S, V = svd
    # Values below the rounding error of the largest one count as zero.
    smallest = S[:, :1] * max(delta.shape[1:]) * torch.finfo(delta.dtype).eps
    rank = max(1, int((smallest < S).sum(1).max()))
    return U[..., :rank] * S[:, None, :rank], V[:, :rank]
