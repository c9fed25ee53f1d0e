"""Scales of the rows of an updated weight: W' = m (W0 + s B A) / ‖W0 + s B A‖.

The norm is taken of each row, one for each output, and is a constant for the gradients:

    h = c v + b     with v = x (W0 + s B A)ᵀ and c = m / ‖W0 + s B A‖
    dL/dv = c g,    dL/dm = Σ g v / ‖W0 + s B A‖ over the tokens,    dL/db = Σ g

Several updates add up, each with its own scale or none, so that the base's output stays the first
term of the sum: such an update changes the output by (c - 1) v + s (drop(x) Aᵀ) Bᵀ.

No pass over the outputs is added to those of the low-rank term: on a CPU they are scaled in the
C that adds it, and the gradient in the C that reads it. Where nobody else reads the output c v, it
is written over v, which is not kept:

    dL/dm = Σ g (c v) / m

Nothing of the size of W0 is computed, except that a quantized weight is written to the buffer that
all products with such weights share, as

    ‖W0_i + s B_i A‖² = ‖W0_i‖² + 2 s B_i (A W0ᵀ)_:,i + s² B_i (A Aᵀ) B_iᵀ

Source: Liu et al. 2024, arXiv:2402.09353, equations 5 and 11 and section 4.3.
"""

# torch.linalg, Function.apply and Tensor.split have no types; A and B are the names of the papers.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportConstantRedefinition=false, reportIncompatibleMethodOverride=false

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.ops import skinny
from lorakit.ops.compute_dtype import autocast_off
from lorakit.ops.native import row_scale_kernels
from lorakit.ops.native.cpu_kernels import LARGE_DTYPES, CpuKernels, takes
from lorakit.ops.native.row_scale_kernels import RowScaleKernels
from lorakit.ops.operands import LinearOperands, LowRankTerm, RowScale
from lorakit.ops.quantized import QuantizedWeight, Weight, dense

_CHUNK = 128
"""Tokens whose products of gradient and output are summed at once, to stay in the cache."""
_WIDEST_NORMS = 24
"""Largest rank at which the norms in C, which read W0 once, are faster than two torch products."""
_LEAST_LENGTH = 1e-20
"""Smaller lengths count as this where outputs are written over their sums, which can then be
computed from the outputs; what it adds to an output is far below rounding."""


@torch.no_grad()
def row_norms(W0: Weight, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Return ‖W0_i + s B_i A‖ of each row without forming B A.

    Args:
        W0: (out, in); a transposed view or a quantized weight also works.
        A: Down-projection, (r, in).
        B: Up-projection, (out, r).
        scaling: Dimensionless factor s.

    Returns: (out,) in float32 (float64 for a float64 weight); never zero, so that a row of zeros,
        whose length is zero too, can be divided by it.
    """
    with autocast_off(W0.device.type):
        weight = _dense(W0)
        kernels = _kernels(weight) if A.shape[0] <= _WIDEST_NORMS else None
        if kernels is not None:
            return kernels.row_norms(weight, A, B, scaling)
        wide = torch.promote_types(weight.dtype, torch.float32)
        if weight.is_contiguous():
            crossed = skinny.down(weight, A)  # (out, r)
        else:
            crossed = (A.to(weight.dtype) @ weight.t()).t()
        A, B = A.to(wide), B.to(wide)
        both = (B @ (A @ A.t())).mul_(scaling).add_(crossed.to(wide), alpha=2)  # (out, r)
        squared = torch.linalg.vector_norm(weight, dim=1, dtype=wide).square_()
        squared.add_(both.mul_(B).sum(1), alpha=scaling)
        return squared.clamp_(min=torch.finfo(wide).tiny).sqrt_()


def factors(scale: RowScale, *, invertible: bool = False) -> Tensor:
    """Return c = m / ‖W0 + s B A‖, (out,), dtype of the norms, without a gradient.

    Args:
        scale: Scale of each output.
        invertible: Whether outputs are written over their sums, so that c must not be zero.
    """
    lengths = scale.lengths.detach().to(scale.norms.dtype)
    if invertible:
        lengths = lengths.abs().clamp_min_(_LEAST_LENGTH).copysign(lengths)
    return lengths / scale.norms


def may_write_over(v: Tensor, layer: LinearOperands) -> bool:
    """Return whether v can be computed exactly enough from c v + b, so that v need not be kept."""
    is_exact = v.dtype in (torch.float32, torch.float64) or _kernels(v) is not None
    return layer.bias is None and is_exact


def up_scaled(
    v: Tensor,
    c: Tensor,
    bias: Tensor | None = None,
    term: tuple[Tensor, Tensor, float] | None = None,
    *,
    dtype: torch.dtype | None = None,
    over: bool = False,
) -> Tensor:
    """Add s u Bᵀ to v in place and return c v + b, without a gradient.

    Args:
        v: (*, out).
        c: What `factors` returned, (out,).
        bias: (out,) or None.
        term: u (tokens, r), B (out, r) and s; None if v is the whole sum already. v then stays as
            it is unless it is written over.
        dtype: dtype of the result; None for that of v.
        over: Whether to write the result over v, of the same dtype.

    Returns: Shape of v.
    """
    dtype = dtype or v.dtype
    kernels = _kernels(v, dtype)
    if term is not None and not (
        kernels is not None
        and term[0].dtype == torch.float32
        and skinny.runs_in_c(v, "up", term[1].shape[1])
    ):
        skinny.up_(v, *term)
        term = None
    if kernels is None:
        return _scale_in_torch(v.to(dtype), c, bias, over=over or dtype != v.dtype)
    h = v if over else torch.empty(v.shape, dtype=dtype, device="cpu")
    wide_bias = None if bias is None else bias.detach().to(torch.float32).contiguous()
    u, B, scaling = term or (None, None, 1.0)
    kernels.up_(_rows(v), u, B, scaling, c.to(torch.float32), wide_bias, _rows(h))
    return h


def _scale_in_torch(v: Tensor, c: Tensor, bias: Tensor | None, *, over: bool) -> Tensor:
    if v.dtype in (torch.float32, torch.float64):
        h = v.mul_(c.to(v.dtype)) if over else v * c.to(v.dtype)
    else:
        # c rounded to 16 bits would lose the change by one training step.
        excess = (c - 1).to(v.dtype)
        h = v.addcmul_(v, excess) if over else torch.addcmul(v, v, excess)
    return h if bias is None else h.add_(bias.to(h.dtype))


class UpGradients(NamedTuple):
    """What comes back through scaled rows; each None if it is not needed."""

    g: Tensor
    """dL/dv = c g, (*, out)."""
    lengths: Tensor | None
    """dL/dm = Σ g v / ‖W0 + s B A‖, (out,), dtype of m."""
    B: Tensor | None = None
    """dL/dB = s (c g)ᵀ u, (out, r)."""


def up_scaled_backward(
    g: Tensor,
    v: Tensor | None,
    scale: RowScale,
    term: tuple[Tensor, Tensor, float] | None = None,
    grad_u: Tensor | None = None,
    *,
    needs_B: bool = False,
    overwrites: bool = False,
    is_output: bool = False,
) -> UpGradients:
    """Compute the gradients of `up_scaled`, and write dL/du = s c g B into `grad_u`.

    Args:
        g: dL/dh, (*, out).
        v: The sums, (*, out); None if the lengths need no gradient.
        scale: Scale of each output.
        term: As in `up_scaled`; None if dL/du and dL/dB are not needed.
        grad_u: (tokens, r), dtype of u; its rows may be strided.
        needs_B: Whether dL/dB is needed.
        overwrites: Whether c g may be written over g.
        is_output: Whether the sums were written over: v is the output c v.
    """
    c = factors(scale, invertible=is_output)
    kernels = _kernels(g)
    if kernels is None or not (v is None or takes(v)):
        dots = None if v is None else _column_dots(g, v, scale.norms.dtype)
        scaled, grad_B = _scale_in_torch(g, c, None, over=overwrites), None
        in_c = None
    else:
        in_c = term
        if term is not None and not (
            term[0].dtype == torch.float32 and skinny.runs_in_c(g, "up_backward", term[1].shape[1])
        ):
            in_c = None
        is_over = overwrites and g.is_contiguous()
        scaled = g if is_over else torch.empty(g.shape, dtype=g.dtype, device="cpu")
        u, B, scaling = in_c or (None, None, 1.0)
        dots, grad_B = kernels.up_backward(
            *(_rows(g), None if v is None else _rows(v), c.to(torch.float32), _rows(scaled)),
            *(u, B, scaling, None if in_c is None else grad_u, needs_B),
        )
    if term is not None and in_c is None and grad_u is not None:
        grad_B = skinny.up_backward(_rows(scaled), *term, grad_u, needs_B)
    lengths = None
    if dots is not None:
        # With the outputs c v instead of v: Σ g v / norms = Σ g (c v) / m, and m = c norms.
        divisor = c * scale.norms if is_output else scale.norms
        lengths = (dots / divisor).to(scale.lengths.dtype)
    return UpGradients(scaled, lengths, grad_B)


def add_changes(
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
        return _ScaledRows.apply(base + changes[0], None, *terms[0].row_scale, bias)
    h = base if bias is None else base + bias.to(base.dtype)
    for change in changes:
        h = h + change
    for change, term in zip(changes, terms, strict=True):
        if term.row_scale is not None:
            h = _ScaledRows.apply(base + change, h, *term.row_scale, None)
    return h


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
        return up_scaled(v, factors(scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        v, *given = ctx.saved_tensors
        scale = RowScale(*given)
        needs_v, needs_h, needs_lengths, _, needs_bias = ctx.needs_input_grad
        grad_v = grad_lengths = grad_bias = None
        if not ctx.adds:
            grad_v, grad_lengths, _ = up_scaled_backward(g, v, scale)
        else:
            if needs_v:
                grad_v = g * _excess(scale, g.dtype)
            if needs_lengths:
                dots = _column_dots(g, v, scale.norms.dtype)
                grad_lengths = (dots / scale.norms).to(scale.lengths.dtype)
        if needs_bias:
            grad_bias = g.reshape(-1, g.shape[-1]).sum(0).to(ctx.bias_dtype)
        return grad_v if needs_v else None, g if needs_h else None, grad_lengths, None, grad_bias


def _excess(scale: RowScale, dtype: torch.dtype) -> Tensor:
    """Return c - 1, (out,)."""
    return factors(scale).sub_(1).to(dtype)


def _kernels(x: Tensor, dtype: torch.dtype | None = None) -> RowScaleKernels | None:
    """Return the compiled functions if they can read an activation and write a dtype, or None."""
    can_write = (dtype or x.dtype) in LARGE_DTYPES
    is_read = can_write and isinstance(skinny.kernels_for(x), CpuKernels)
    return row_scale_kernels.load() if is_read else None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _column_dots(g: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Σ g v over all but the last dimension, (out,)."""
    g, v = _rows(g), _rows(v)
    if g.device.type != "cpu" or torch.compiler.is_compiling():
        return (g * v).sum(0, dtype=dtype)
    total = torch.zeros(g.shape[-1], dtype=dtype, device=g.device)
    for g_part, v_part in zip(g.split(_CHUNK), v.split(_CHUNK), strict=True):
        total += (g_part * v_part).sum(0, dtype=dtype)
    return total


def _dense(W0: Weight) -> Tensor:
    # float32 if the input of the layer decides, as for 8 bits.
    return dense(W0, W0.dtype or torch.float32) if isinstance(W0, QuantizedWeight) else W0.detach()
