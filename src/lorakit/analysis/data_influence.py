"""The influence of training examples on a loss, from gradients alone (DataInf)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

DAMPING = 0.1
"""Share of the mean squared gradient that is added to the diagonal; the paper's."""

Gradients = Mapping[str, Tensor]
"""Gradients of one loss by the name of a tensor, which is a layer here."""


@torch.no_grad()
def data_influence(
    examples: Iterable[Gradients], query: Gradients, damping: float = DAMPING
) -> Tensor:
    """Return how much each training example has lowered a loss.

    The influence of example k is r·g_k with r = H^-1 v, summed over the layers: v is the gradient
    of the loss, g_k that of the example, and H = (1/n) sum g_i g_i^T + λ I. DataInf exchanges the
    mean and the inverse, and each of the n inverses is one of rank 1 (Sherman-Morrison):

        r = (1/λ) (v - (1/n) sum_i  v·g_i / (λ + ‖g_i‖²)  g_i)

    with λ = damping · mean_i ‖g_i‖² / d for a layer of d elements. No matrix of the size of H, nor
    one of all examples, is formed.

    Args:
        examples: Gradients of the training examples; iterated three times, in the same order.
        query: Gradients v of the loss in question.
        damping: Dimensionless, above 0.

    Returns: (n,) float64 on the CPU. Above 0: training on the example lowers the loss; below 0: it
        raises the loss.

    Source: Kwon et al. 2023, arXiv:2310.00902, equation 5 and section 3.
    """
    squares = [{name: _dot(g, g) for name, g in one.items()} for one in examples]
    count = len(squares)
    if not count:
        return torch.zeros(0, dtype=torch.float64)
    mean = {name: sum(one[name] for one in squares) / count for name in query}
    damp = {name: damping * mean[name] / query[name].numel() for name in query if mean[name]}
    solved = {name: query[name].to(torch.float64, copy=True) for name in damp}
    for one, square in zip(examples, squares, strict=True):
        for name, total in solved.items():
            weight = _dot(query[name], one[name]) / (damp[name] + square[name])
            total.add_(one[name], alpha=-weight / count)
    solved = {name: (total / damp[name]).float() for name, total in solved.items()}
    scores = [sum(_dot(r, one[name]) for name, r in solved.items()) for one in examples]
    return torch.tensor(scores, dtype=torch.float64)


def _dot(one: Tensor, other: Tensor) -> float:
    """Return the inner product of two tensors of one shape."""
    return float(torch.linalg.vecdot(one.flatten().float(), other.flatten().float()))
