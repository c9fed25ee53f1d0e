"""An adapted linear layer in which each batch row has its own adapter, or none.

With i(t) the adapter of token t,

    h_t = c_i (x_t W0ᵀ + s_i u_t B_iᵀ) + b_i      with u_t = drop(x_t) A_iᵀ

The base product is one product for all rows. The low-rank path is one grouped product: on a CPU
the kernels of `skinny.py` take a table of groups, runs of rows with one adapter, and read each
adapter in place; elsewhere the factors are stacked, padded to one rank with zeros, gathered
for each row and multiplied as one batch. Ranks, scalings and dropout may differ, and so may biases
and row scales, which are applied afterwards. Given g = dL/dv,

    dL/dB_i = s_i Σ g_tᵀ u_t                                      over the tokens of adapter i
    dL/du_t = s_i g_t B_i
    dL/dA_i = Σ (dL/du_t)ᵀ drop(x_t)                              over the tokens of adapter i
    dL/dx_t = g_t W0 + drop'(dL/du_t A_i)
"""

# torch gives the parameters of Function.backward no names.
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.ops import grouped_in_torch, skinny
from lorakit.ops.compute_dtype import (
    autocast_off,
    compute_dtype_of,
    flatten_tokens,
    output_dtype_of,
)
from lorakit.ops.native import cpu_kernels
from lorakit.ops.operands import LowRankTerm
from lorakit.ops.per_row_terms import PerRowTerms
from lorakit.ops.quantized import Layout, Weight, dense, linear, parts, weight_from
from lorakit.ops.weight_products import backward_product, forward_product


def low_rank_linear_per_row(
    x: Tensor, W0: Weight, bias: Tensor | None, rows: PerRowTerms
) -> Tensor:
    """Compute c (x W0ᵀ + s (drop(x) Aᵀ) Bᵀ) + b with the operands of each batch row.

    Args:
        x: Activations, (rows, *, in); (1, tokens, in) where the rows are segments.
        W0: Weight, (out, in), usually frozen; a transposed view or a quantized weight also works.
        bias: (out,) or None; the base's.
        rows: The updates, at least one, and the update of each row.

    Returns: (rows, *, out) or (1, tokens, out), device of x, dtype of x (of autocast where that
        is on).

    Raises:
        ShapeError: W0, A and B do not fit, or x has another number of rows; names the shapes.
        DtypeError: x and W0 differ in dtype outside autocast.

    Memory: saves x itself, shared with its neighbours, and one (tokens, largest r) tensor.
    """
    scales = rows.row_scales()
    if scales is None and not rows.biases:
        return _product(x, W0, bias, rows)
    h = _product(x, W0, None, rows)
    if scales is not None:
        # c - 1 in float32 at least: c rounded to 16 bits would lose small changes by training.
        excess = rows.along_tokens(scales.sub(1), h)
        h = torch.addcmul(h, h, excess) if torch.is_grad_enabled() else h.addcmul_(h, excess)
    if rows.biases:
        return h + rows.along_tokens(rows.row_biases(bias), h)
    return h if bias is None else h + bias.to(h.dtype)


def _product(x: Tensor, W0: Weight, bias: Tensor | None, rows: PerRowTerms) -> Tensor:
    """Compute x W0ᵀ + b + s (drop(x) Aᵀ) Bᵀ with the A, B and s of each batch row."""
    rows.check_shapes(x, W0)
    dtype = compute_dtype_of(x, (W0,))
    out_dtype = output_dtype_of(x, dtype)
    if not torch.is_grad_enabled():
        return _forward(x, W0, bias, rows, dtype, trains=False).h.to(out_dtype)
    seeds = _seeds_of(rows.terms)
    constants = tuple((term.scaling, term.drop_probability) for term in rows.terms)
    factors = [factor for term in rows.terms for factor in (term.A, term.B)]
    layout, weight = parts(W0)
    settings = _Settings(
        rows.index, rows.lengths, rows.own_tokens, constants, layout, dtype, out_dtype
    )
    # A compiled graph takes its tensors as arguments, and no groups that were prepared before.
    prepared = None if torch.compiler.is_compiling() else rows
    return _LowRankLinearPerRow.apply(x, settings, prepared, bias, seeds, *weight, *factors)  # type: ignore[return-value]  # `apply` has no types


class _Settings(NamedTuple):
    """Constants that the node keeps besides tensors."""

    row_index: tuple[int, ...]
    lengths: tuple[int, ...] | None
    own_tokens: tuple[int, ...] | None
    constants: tuple[tuple[float, float], ...]
    """(scaling, drop probability) of each term."""
    layout: Layout | None
    """Layout of the weight; None for a dense one."""
    dtype: torch.dtype
    """dtype of the products."""
    out_dtype: torch.dtype


class _Forward(NamedTuple):
    """What `_forward` returns."""

    h: Tensor
    u: Tensor | None
    """None if no gradients will be needed."""
    groups: tuple[cpu_kernels.Groups, cpu_kernels.Groups] | None
    """The groups of the compiled products; None if others have computed it."""


def _forward(
    x: Tensor,
    W0: Weight,
    bias: Tensor | None,
    rows: PerRowTerms,
    dtype: torch.dtype,
    trains: bool = True,
) -> _Forward:
    """Compute h, and what the gradients need."""
    tokens = x.reshape(-1, x.shape[-1]).to(dtype)  # (tokens, in)
    bias = None if bias is None else bias.to(dtype)
    W = dense(W0, dtype) if trains else None
    h = linear(tokens, W0, bias) if W is None else forward_product(tokens, W, bias)
    kernels = skinny.kernels_for(tokens)
    groups = None
    if isinstance(kernels, cpu_kernels.CpuKernels):
        down_groups, up_groups = groups = rows.kernel_groups(len(tokens))
        u = cpu_kernels.empty_float32(tokens.shape[0], rows.largest_rank) if trains else None
        if u is not None:
            kernels.down_groups(tokens, down_groups, u)
            kernels.up_groups_(h, up_groups, u)
        else:
            kernels.add_groups_(h, tokens, down_groups, up_groups)
    else:
        u = grouped_in_torch.add_(h, tokens, rows)
    h = torch.ops.aten._unsafe_view(h, (*x.shape[:-1], h.shape[-1]))
    return _Forward(h, u, groups)


class _LowRankLinearPerRow(torch.autograd.Function):
    """The formulas at the top of the file."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        settings: _Settings,
        rows: PerRowTerms | None,
        bias: Tensor | None,
        seeds: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        given = iter(tensors)
        W0 = weight_from(settings.layout, given)
        if rows is None:
            rows = _row_terms(settings, list(given), seeds)
        h, u, ctx.groups = _forward(x, W0, bias, rows, settings.dtype)
        ctx.save_for_backward(x, bias, seeds, u, *tensors)
        ctx.settings = settings
        if ctx.groups is not None:
            ctx.numbers = [number for _, _, number in rows.spans(h.numel() // h.shape[-1])]
        return h.to(settings.out_dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, seeds, u, *tensors = ctx.saved_tensors
        settings: _Settings = ctx.settings
        given = iter(tensors)
        W0: Weight = weight_from(settings.layout, given)
        factors = list(given)
        needs_x, _, _, needs_bias, _, *flags = ctx.needs_input_grad
        weight_flags, flags = flags[: -len(factors)], flags[-len(factors) :]
        grad_W0 = grad_bias = None
        with autocast_off(grad.device.type):
            g: Tensor = flatten_tokens(grad, settings.dtype)  # type: ignore[assignment]  # None stays None
            tokens: Tensor = flatten_tokens(x, settings.dtype)  # type: ignore[assignment]  # None stays None
            g = g.contiguous()
            grad_x = backward_product(g, dense(W0, settings.dtype)) if needs_x else None
            if ctx.groups is not None:
                gradients = _backward_compiled(
                    tokens, g, u, ctx.groups, ctx.numbers, factors, grad_x, flags
                )
            else:
                rows = _row_terms(settings, factors, seeds)
                needs = list(zip(flags[0::2], flags[1::2], strict=True))
                gradients = grouped_in_torch.backward(tokens, g, u, rows, grad_x, needs)
            if weight_flags[0] and isinstance(W0, Tensor):
                grad_W0 = (g.t() @ tokens).to(W0.dtype)
            if needs_bias:
                grad_bias = g.sum(0).to(bias.dtype)
        if grad_x is not None:
            grad_x = grad_x.to(x.dtype).view(x.shape)
        of_weight = [grad_W0] + [None] * (len(weight_flags) - 1)
        return grad_x, None, None, grad_bias, None, *of_weight, *gradients


def _seeds_of(terms: Sequence[LowRankTerm]) -> Tensor | None:
    """Return the seed that terms share, or that of each, (terms,); None if none drops."""
    seeds = [term.seed for term in terms]
    distinct = {id(seed): seed for seed in seeds if seed is not None}
    if len(distinct) < 2:
        return next(iter(distinct.values()), None)
    return torch.stack(
        [torch.zeros_like(next(iter(distinct.values()))) if s is None else s for s in seeds]
    )


def _row_terms(settings: _Settings, factors: Sequence[Tensor], seeds: Tensor | None) -> PerRowTerms:
    triples = zip(settings.constants, factors[0::2], factors[1::2], strict=True)
    terms: list[LowRankTerm] = []
    for number, ((scaling, p), A, B) in enumerate(triples):
        seed = seeds if seeds is None or not seeds.ndim else seeds[number]
        terms.append(LowRankTerm(A, B, scaling, p, seed if p else None))
    return PerRowTerms(
        terms, settings.row_index, lengths=settings.lengths, own_tokens=settings.own_tokens
    )


def _backward_compiled(
    tokens: Tensor,
    g: Tensor,
    u: Tensor,
    groups: tuple[cpu_kernels.Groups, cpu_kernels.Groups],
    numbers: Sequence[int],
    factors: Sequence[Tensor],
    grad_x: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of A and B in turn, and add to dL/dx.

    Args:
        tokens: x, (tokens, in).
        g: dL/dh, (tokens, out).
        u: That of forward, (tokens, largest r).
        groups: Those of forward, of A and of B.
        numbers: The term of each group.
        factors: A and B of each term in turn.
        grad_x: The base's dL/dx, (tokens, in), or None.
        needs: The factors that need a gradient.
    """
    kernels: cpu_kernels.CpuKernels = skinny.kernels_for(tokens)
    gradients, addresses = _zeros_for(factors, needs)
    of_A, of_B = ([addresses[2 * number + place] for number in numbers] for place in (0, 1))
    grad_u = torch.empty_like(u)
    kernels.up_backward_groups(g, groups[1].for_backward(of_B), u, grad_u)
    if grad_x is not None or any(of_A):
        kernels.down_backward_groups_(tokens, groups[0].for_backward(of_A), grad_u, grad_x)
    return [
        None if gradient is None else gradient.to(factor.dtype)
        for gradient, factor in zip(gradients, factors, strict=True)
    ]


def _zeros_for(
    factors: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[list[Tensor | None], list[int]]:
    """Return float32 zeros for the gradients that are needed, in one buffer, and their addresses.

    Where a gradient is not needed, they are None and 0.
    """
    sizes = [
        factor.numel() if is_needed else 0 for factor, is_needed in zip(factors, needs, strict=True)
    ]
    buffer = cpu_kernels.zeros_float32((sum(sizes),))
    first = cpu_kernels.address(buffer)
    begins = accumulate(sizes, initial=0)
    gradients: list[Tensor | None] = [
        part.view(factor.shape) if is_needed else None
        for part, factor, is_needed in zip(torch.split(buffer, sizes), factors, needs, strict=True)
    ]
    return gradients, [
        first + 4 * begin if is_needed else 0
        for begin, is_needed in zip(begins, needs, strict=False)
    ]
