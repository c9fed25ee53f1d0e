"""Row norms and row scales of DoRA, whose weight is W' = m (W0 + s B A) / ‖W0 + s B A‖.

The norm is taken of each row, one for each output, and is a constant for the gradients:

    h = c v + b     with v = x (W0 + s B A)ᵀ and c = m / ‖W0 + s B A‖
    dL/dv = c g,    dL/dm = Σ g v / ‖W0 + s B A‖ over the tokens,    dL/db = Σ g

Nothing of the size of W0 is computed, except that a quantised weight is written to the buffer that
all products with such weights share, as

    ‖W0_i + s B_i A‖² = ‖W0_i‖² + 2 s B_i (A W0ᵀ)_:,i + s² B_i (A Aᵀ) B_iᵀ

Source: Liu et al. 2024, arXiv:2402.09353, equations 5 and 11 and section 4.3.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.ops import skinny
from lorakit.ops.low_rank import autocast_off
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

    Returns: (out,), dtype of `squared_norms`; never zero, so that a row of zeros, whose magnitude
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


def scaled_rows(v: Tensor, magnitude: Tensor, norms: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute v m / ‖W0 + s B A‖ + b.

    Args:
        v: x (W0 + s B A)ᵀ, (*, out).
        magnitude: m, (out,); any floating dtype.
        norms: What `row_norms` returned, (out,); a constant for the gradients.
        bias: (out,) or None.

    Returns: Shape, dtype and device of v.

    Memory: saves v.
    """
    return _ScaledRows.apply(v, None, magnitude, norms, bias)  # type: ignore[return-value]


def add_rescaling(h: Tensor, v: Tensor, magnitude: Tensor, norms: Tensor) -> Tensor:
    """Compute h + v (m / ‖W0 + s B A‖ - 1), where h holds v already.

    Args:
        h: (*, out).
        v: x (W0 + s B A)ᵀ, (*, out), dtype of h.
        magnitude: m, (out,); any floating dtype.
        norms: What `row_norms` returned, (out,); a constant for the gradients.

    Returns: Shape, dtype and device of h.

    Memory: saves v.
    """
    return _ScaledRows.apply(v, h, magnitude, norms, None)  # type: ignore[return-value]


class _ScaledRows(torch.autograd.Function):
    """Scale the last dimension of v by c, or add (c - 1) v to h."""

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        h: Tensor | None,
        magnitude: Tensor,
        norms: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        # c rounded to 16 bits would lose the change by one training step.
        excess = (magnitude.to(norms.dtype) / norms).sub_(1).to(v.dtype)
        out = torch.addcmul(v if h is None else h, v, excess)
        if bias is not None:
            out.add_(bias.to(v.dtype))
        ctx.save_for_backward(v if ctx.needs_input_grad[2] else None, excess, norms)
        ctx.adds, ctx.dtypes = (
            h is not None,
            (magnitude.dtype, None if bias is None else bias.dtype),
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        v, excess, norms = ctx.saved_tensors
        needs_v, needs_h, needs_magnitude, _, needs_bias = ctx.needs_input_grad
        grad_v = grad_magnitude = grad_bias = None
        if needs_v:
            grad_v = g * excess if ctx.adds else torch.addcmul(g, g, excess)
        if needs_magnitude:
            grad_magnitude = (_column_dots(g, v, norms.dtype) / norms).to(ctx.dtypes[0])
        if needs_bias:
            grad_bias = g.reshape(-1, g.shape[-1]).sum(0).to(ctx.dtypes[1])
        return grad_v, g if needs_h else None, grad_magnitude, None, grad_bias


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
