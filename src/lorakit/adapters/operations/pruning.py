"""Pruning of task vectors, and electing the signs of several of them."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

MajoritySign = Literal["total", "frequency"]


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """Keep the elements of largest absolute value and set the others to zero.

    Args:
        tensor: Any shape.
        density: Share of elements to keep; their number is rounded down.

    >>> keep_largest(torch.tensor([1.0, -4.0, 2.0, 3.0]), 0.5).tolist()
    [0.0, -4.0, 0.0, 3.0]
    """
    if density >= 1:
        return tensor
    kept = tensor.abs().reshape(-1).topk(int(density * tensor.numel())).indices
    mask = torch.zeros(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    mask[kept] = 1
    return tensor * mask.reshape(tensor.shape)


def drop_random(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Keep each element with a probability, and divide by it to preserve the mean.

    Args:
        tensor: Any shape.
        density: Probability of keeping an element.
        generator: A CPU generator, so that the result does not depend on the device.

    Source: Yu et al. 2023, arXiv:2311.03099, section 3.2 (DARE).
    """
    if density >= 1:
        return tensor
    mask = torch.bernoulli(torch.full(tensor.shape, density), generator=generator)
    return tensor * mask.to(tensor) / density


def elect_signs(
    tensors: Sequence[Tensor], weights: Sequence[float], majority: MajoritySign
) -> Tensor:
    """Return the elementwise weighted mean of the numbers that have the majority's sign.

    Args:
        tensors: Tensors of one shape.
        weights: One weight per tensor.
        majority: Whether signs are weighted by absolute value ("total") or counted ("frequency").

    Source: Yadav et al. 2023, arXiv:2306.01708, sections 3 and 4 (elect, disjoint merge).
    """
    stacked = torch.stack(list(tensors))
    counted = stacked if majority == "total" else stacked.sign()
    sign = torch.where(counted.sum(dim=0) >= 0, 1, -1)
    agrees = stacked.sign() == sign
    factors = torch.tensor(weights, dtype=stacked.dtype, device=stacked.device)
    weighted = stacked * factors.reshape(-1, *[1] * (stacked.ndim - 1))
    return (weighted * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
