"""Scales of the rows of an updated weight: W' = m (W0 + s B A) / ‖W0 + s B A‖.

The norm is taken of each row, one for each output, and is a constant for the gradients:

    h = c v + b     with v = x (W0 + s B A)ᵀ and c = m / ‖W0 + s B A‖
    dL/dv = c g,    dL/dm = Σ g v / ‖W0 + s B A‖ over the tokens,    dL/db = Σ g

Several updates add up, each with its own scale or none, so that the base's output stays the first
term of the sum: such an update changes the output by (c - 1) v + s (drop(x) Aᵀ) Bᵀ.

Nothing of the size of W0 is computed, except that a quantised weight is written to the buffer that
all products with such weights share, as

    ‖W0_i + s B_i A‖² = ‖W0_i‖² + 2 s B_i (A W0ᵀ)_:,i + s² B_i (A Aᵀ) B_iᵀ

Source: Liu et al. 2024, arXiv:2402.09353, equations 5 and 11 and section 4.3.
"""

# torch.linalg, Function.apply and Tensor.split have no types; A and B are the names of the papers.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportConstantRedefinition=false, reportIncompatibleMethodOverride=false

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.ops import skinny
from lorakit.ops.compute_dtype import autocast_off
from lorakit.ops.operands import LowRankTerm, RowScale
from lorakit.ops.quantized import QuantizedWeight, Weight, dense

_CHUNK = 128
"""Tokens whose products of gradient and output are summed at once, to stay in the cache."""


@torch.no_grad()
def squared_row_norms(W0: Weight) -> Tensor:
    """Return ‖W0_i‖² of each row, (out,), in float32 (float64 for a float64 weight).

    Args:
        W0: (out, in); a transposed view or a quantised weight also works.
    """
    weight = _dense(W0)
    return torch.linalg.vector_norm(weight, dim=1, dtype=_wide(weight.dtype)).square()


@torch.no_grad()
def row_norms(W0: Weight, squared_norms: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Return ‖W0_i + s B_i A‖ of each row without forming B A.

    Args:
        W0: (out, in); a transposed view or a quantised weight also works.
        squared_norms: What `squared_row_norms` returned for W0, (out,).
        A: Down-projection, (r, in).
        B: Up-projection, (out, r).
        scaling: Dimensionless factor s.

    Returns: (out,), dtype of `squared_norms`; never zero, so that a row of zeros, whose length
        is zero too, can be divided by it.
    """
    with autocast_off(squared_norms.device.type):
        weight = _dense(W0)
        wide = squared_norms.dtype
        if weight.is_contiguous():
            crossed = skinny.down(weight, A)  # (out, r)
        else:
            crossed = (A.to(weight.dtype) @ weight.t()).t()
        A, B = A.to(wide), B.to(wide)
        both = (B @ (A @ A.t())).mul_(scaling).add_(crossed.to(wide), alpha=2)  # (out, r)
        squared = torch.add(squared_norms, both.mul_(B).sum(1), alpha=scaling)
        return squared.clamp_(min=torch.finfo(wide).tiny).sqrt_()


def scaled(v: Tensor, scale: RowScale, bias: Tensor | None = None) -> Tensor:
    """Compute c v + b without a gradient.

    Args:
        v: (*, out).
        scale: Scale of each output.
        bias: (out,) or None.

    Returns: Shape and dtype of v.
    """
    h = torch.addcmul(v, v, _excess(scale, v.dtype))
    return h if bias is None else h.add_(bias.to(h.dtype))


def scale_gradient(g: Tensor, scale: RowScale, overwrites: bool = False) -> Tensor:
    """Return dL/dv = c g, (*, out), written over g if that is allowed."""
    excess = _excess(scale, g.dtype)
    return g.addcmul_(g, excess) if overwrites else torch.addcmul(g, g, excess)


def lengths_gradient(g: Tensor, v: Tensor, scale: RowScale) -> Tensor:
    """Return dL/dm = Σ g v / ‖W0 + s B A‖, (out,), dtype of m.

    Args:
        g: dL/dh, (*, out).
        v: Outputs before they are scaled, (*, out).
        scale: Scale of each output.
    """
    dots = _column_dots(g, v, scale.norms.dtype)
    return (dots / scale.norms).to(scale.lengths.dtype)


def summed(
    base: Tensor, changes: Sequence[Tensor], terms: Sequence[LowRankTerm], bias: Tensor | None
) -> Tensor:
    """Add changes to a base's output, each with the row scale of its term, if it has one.

    Args:
        base: x W0ᵀ, (*, out).
        changes: s (drop(x) Aᵀ) Bᵀ of each term, (*, out), dtype of base.
        terms: The terms.
        bias: (out,) or None.

    Returns: Shape, dtype and device of base.
    """
    if len(terms) == 1 and terms[0].row_scale is not None:
        return _ScaledRows.apply(base + changes[0], None, *terms[0].row_scale, bias)  # type: ignore[return-value]
    h = base if bias is None else base + bias.to(base.dtype)
    for change in changes:
        h = h + change
    for change, term in zip(changes, terms, strict=True):
        if term.row_scale is not None:
            h = _ScaledRows.apply(base + change, h, *term.row_scale, None)
    return h  # type: ignore[return-value]


class _ScaledRows(torch.autograd.Function):
    """Compute c v + b, or add (c - 1) v to h, which holds v already."""

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        h: Tensor | None,
        lengths: Tensor,
        norms: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        scale = RowScale(lengths, norms)
        ctx.save_for_backward(v if ctx.needs_input_grad[2] else None, *scale)
        ctx.adds, ctx.bias_dtype = h is not None, None if bias is None else bias.dtype
        if h is not None:
            return torch.addcmul(h, v, _excess(scale, v.dtype))
        return scaled(v, scale, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        v, *given = ctx.saved_tensors
        scale = RowScale(*given)
        needs_v, needs_h, needs_lengths, _, needs_bias = ctx.needs_input_grad
        grad_v = grad_lengths = grad_bias = None
        if needs_v:
            grad_v = g * _excess(scale, g.dtype) if ctx.adds else scale_gradient(g, scale)
        if needs_lengths:
            grad_lengths = lengths_gradient(g, v, scale)
        if needs_bias:
            grad_bias = g.reshape(-1, g.shape[-1]).sum(0).to(ctx.bias_dtype)
        return grad_v, g if needs_h else None, grad_lengths, None, grad_bias


def _excess(scale: RowScale, dtype: torch.dtype) -> Tensor:
    """Return c - 1, (out,): c rounded to 16 bits would lose the change by one training step."""
    return (scale.lengths.detach().to(scale.norms.dtype) / scale.norms).sub_(1).to(dtype)


def _column_dots(g: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Σ g v over all but the last dimension, (out,)."""
    g, v = (t.reshape(-1, t.shape[-1]) for t in (g, v))
    if g.device.type != "cpu" or torch.compiler.is_compiling():
        return (g * v).sum(0, dtype=dtype)
    total = torch.zeros(g.shape[-1], dtype=dtype, device=g.device)
    for g_part, v_part in zip(g.split(_CHUNK), v.split(_CHUNK), strict=True):
        total += (g_part * v_part).sum(0, dtype=dtype)
    return total


def _dense(W0: Weight) -> Tensor:
    # float32 if the input of the layer decides, as for 8 bits.
    return dense(W0, W0.dtype or torch.float32) if isinstance(W0, QuantizedWeight) else W0.detach()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
