"""Dispatching tokens to the experts that they are routed to, and combining the outputs."""

# Tensor.tolist has no types, and the parameters of Function.backward no names.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable


class Route:
    """The (token, expert) pairs sorted by expert.

    Attributes:
        order: Position of each pair among those of `top_k_index`, (pairs,), sorted by expert.
        inverse: Position of each pair of `top_k_index` in that order, (pairs,).
        top_k: Experts per token.
        counts: Pairs of each expert, as plain numbers. Pairs of experts of other processes come
            last and are not counted.
    """

    def __init__(self, top_k_index: Tensor, experts: int) -> None:
        ids, self.order = torch.sort(top_k_index.reshape(-1), stable=True)
        self.inverse = torch.empty_like(self.order)
        self.inverse[self.order] = torch.arange(len(self.order), device=self.order.device)
        self.top_k = top_k_index.shape[-1]
        self.counts = _counts(ids, experts)

    def dispatch(self, hidden: Tensor) -> Tensor:
        """Return each pair's token, (pairs, features), of tokens (tokens, features)."""
        return _Dispatch.apply(hidden, self.order, self.inverse, self.top_k)

    def sort(self, weights: Tensor) -> Tensor:
        """Return values of the pairs, (tokens, top_k), sorted by expert, (pairs,)."""
        return weights.reshape(-1).index_select(0, self.order)

    def combine(self, outputs: Tensor) -> Tensor:
        """Sum the outputs of the experts of each token.

        Args:
            outputs: (pairs, features), sorted by expert.

        Returns: (tokens, features).
        """
        in_place = outputs.index_select(0, self.inverse)
        return in_place.view(-1, self.top_k, outputs.shape[-1]).sum(dim=1)


class _Dispatch(torch.autograd.Function):
    """A gather whose gradient is a gather too: without atomic additions it is deterministic."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return hidden.index_select(0, order // top_k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        in_place = g.index_select(0, inverse).view(-1, ctx.top_k, g.shape[-1])
        return in_place.sum(dim=1), None, None, None


def _counts(ids: Tensor, experts: int) -> list[int]:
    if isinstance(ids, FakeTensor) or ids.is_meta:
        # A fake tensor has no values; the memory of a step does not depend on them.
        share, rest = divmod(len(ids), experts)
        return [share + (expert < rest) for expert in range(experts)]
    return torch.bincount(ids, minlength=experts)[:experts].tolist()
