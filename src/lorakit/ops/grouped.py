"""An adapted linear layer in which each batch row has its own adapter, or none.

With tokens as rows and i(t) the adapter of token t,

    h_t = x_t W0ᵀ + b + s_i u_t B_iᵀ      with u_t = drop(x_t) A_iᵀ

The base product is one product for all rows. The low-rank path is one grouped product: on a CPU
the kernels of `skinny.py` take a table of groups, runs of rows with one adapter, and read each
adapter in place; elsewhere the factors are stacked, padded to one rank with zeros, gathered
for each row and multiplied as one batch. Ranks, scalings and dropout may differ. Given g = dL/dh,

    dL/dB_i = s_i Σ g_tᵀ u_t                                      over the tokens of adapter i
    dL/du_t = s_i g_t B_i
    dL/dA_i = Σ (dL/du_t)ᵀ drop(x_t)                              over the tokens of adapter i
    dL/dx_t = g_t W0 + drop'(dL/du_t A_i)
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorakit.errors import ShapeError
from lorakit.ops import skinny
from lorakit.ops.dropout_mask import kernel_mask
from lorakit.ops.linear_group import LinearOperands, LowRankTerm
from lorakit.ops.low_rank import (
    autocast_off,
    check_shapes,
    compute_dtype_of,
    output_dtype_of,
    rows_of,
)
from lorakit.ops.native import cpu_kernels
from lorakit.ops.native.cpu_kernels import Group, Groups
from lorakit.ops.quantized import Layout, Weight, dense, linear, parts, weight_from


class PerRowTerms:
    """Which update acts on which row of a batch.

    Attributes:
        terms: The updates of the distinct adapters; they share one dropout seed.
        index: For each batch row the position of its update, or -1 for none.
        largest_rank: Columns of u.
    """

    def __init__(self, terms: Sequence[LowRankTerm], index: Sequence[int]):
        self.terms = tuple(terms)
        self.index = tuple(index)
        self.largest_rank = max(term.A.shape[0] for term in terms)
        self._groups: dict[int, tuple[Groups, Groups]] = {}
        self._checked: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def check_shapes(self, x: Tensor, W0: Weight) -> None:
        """Check the shapes of the input, the weight and the terms, the latter once.

        Raises:
            ShapeError: They do not fit; names the shapes.
        """
        if self._checked != (x.shape, W0.shape):
            check_shapes(x.shape, LinearOperands(W0, None, self.terms))
            if x.ndim < 2 or x.shape[0] != len(self.index):
                raise ShapeError(
                    f"Adapters are given for {len(self.index)} rows, but the input of an adapted "
                    f"layer has shape {tuple(x.shape)}, expected {len(self.index)} as its first "
                    "dimension. Name one adapter for each row of the batch; generate() repeats the "
                    "names as it repeats rows for beams."
                )
            self._checked = (x.shape, W0.shape)

    def spans(self, tokens_each: int) -> list[tuple[int, int, int]]:
        """Return (first token, end, term) of each run of rows with one update."""
        found, row = [], 0
        for term, run in groupby(self.index):
            rows = len(list(run))
            if term >= 0:
                found.append((row * tokens_each, (row + rows) * tokens_each, term))
            row += rows
        return found

    def forward_groups(self, tokens_each: int) -> tuple[Groups, Groups]:
        """Return the groups of `down` and of `up_`, cached for each number of tokens."""
        if tokens_each not in self._groups:
            spans = self.spans(tokens_each)
            self._groups[tokens_each] = (
                Groups([_down_group(*span, self.terms) for span in spans]),
                Groups([_up_group(*span, self.terms) for span in spans]),
            )
        return self._groups[tokens_each]


def _down_group(
    begin: int, end: int, term: int, terms: Sequence[LowRankTerm], gradient: Tensor | None = None
) -> Group:
    A, _, _, p, seed = terms[term]
    mask = kernel_mask(p, seed if p else None)
    return Group(begin, end, A, A.shape[0], mask=mask, gradient=gradient)


def _up_group(
    begin: int, end: int, term: int, terms: Sequence[LowRankTerm], gradient: Tensor | None = None
) -> Group:
    B, scaling = terms[term].B, terms[term].scaling
    return Group(begin, end, B, B.shape[1], scaling, gradient=gradient)


def low_rank_linear_per_row(
    x: Tensor, W0: Weight, bias: Tensor | None, rows: PerRowTerms
) -> Tensor:
    """Compute x W0ᵀ + b + s (drop(x) Aᵀ) Bᵀ with the A, B and s of each batch row.

    Args:
        x: Activations, (rows, *, in).
        W0: Weight, (out, in), usually frozen; a transposed view or a quantised weight also works.
        bias: (out,) or None.
        rows: The updates, at least one, and the update of each row.

    Returns: (rows, *, out), device of x, dtype of x (of autocast where that is on).

    Raises:
        ShapeError: W0, A and B do not fit, or x has another number of rows; names the shapes.
        DtypeError: x and W0 differ in dtype outside autocast.

    Memory: saves x itself, shared with its neighbours, and one (tokens, largest r) tensor.
    """
    rows.check_shapes(x, W0)
    dtype = compute_dtype_of(x, (LinearOperands(W0, bias, rows.terms),))
    out_dtype = output_dtype_of(x, dtype)
    if not torch.is_grad_enabled():
        return _forward(x, W0, bias, rows, dtype, trains=False)[0].to(out_dtype)
    seed = next((term.seed for term in rows.terms if term.seed is not None), None)
    constants = tuple((term.scaling, term.drop_probability) for term in rows.terms)
    factors = [factor for term in rows.terms for factor in (term.A, term.B)]
    layout, weight = parts(W0)
    settings = _Settings(rows.index, constants, layout, dtype, out_dtype)
    return _LowRankLinearPerRow.apply(x, settings, bias, seed, *weight, *factors)  # type: ignore[return-value]


class _Settings(NamedTuple):
    """Constants that the node keeps besides tensors."""

    index: tuple[int, ...]
    constants: tuple[tuple[float, float], ...]
    """(scaling, drop probability) of each term."""
    layout: Layout | None
    """Layout of the weight; None for a dense one."""
    dtype: torch.dtype
    """dtype of the products."""
    out_dtype: torch.dtype


def _forward(
    x: Tensor,
    W0: Weight,
    bias: Tensor | None,
    rows: PerRowTerms,
    dtype: torch.dtype,
    trains: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Return h, and u if gradients will be needed."""
    tokens = x.reshape(-1, x.shape[-1]).to(dtype)  # (tokens, in)
    bias = None if bias is None else bias.to(dtype)
    h = F.linear(tokens, dense(W0, dtype), bias) if trains else linear(tokens, W0, bias)
    each = tokens.shape[0] // len(rows.index)
    kernels = skinny.kernels_for(tokens)
    if isinstance(kernels, cpu_kernels.CpuKernels):
        down_groups, up_groups = rows.forward_groups(each)
        u = cpu_kernels.empty_float32(tokens.shape[0], rows.largest_rank) if trains else None
        if u is not None:
            kernels.down_groups(tokens, down_groups, u)
            kernels.up_groups_(h, up_groups, u)
        else:
            kernels.add_groups_(h, tokens, down_groups, up_groups)
    else:
        padded = _Padded.of(rows, dtype, h.device)
        u = torch.bmm(_per_row(_dropped(tokens, rows), rows), padded.A.mT)  # (rows, each, r)
        _per_row(h, rows).baddbmm_(u, padded.B.mT)
        u = u.reshape(tokens.shape[0], rows.largest_rank)
    return torch.ops.aten._unsafe_view(h, (*x.shape[:-1], h.shape[-1])), u


class _LowRankLinearPerRow(torch.autograd.Function):
    """The formulas at the top of the file."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        settings: _Settings,
        bias: Tensor | None,
        seed: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        given = iter(tensors)
        W0 = weight_from(settings.layout, given)
        rows = _row_terms(settings, list(given), seed)
        h, u = _forward(x, W0, bias, rows, settings.dtype)
        ctx.save_for_backward(x, bias, seed, u, *tensors)
        ctx.settings = settings
        return h.to(settings.out_dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, seed, u, *tensors = ctx.saved_tensors
        settings: _Settings = ctx.settings
        given = iter(tensors)
        W0: Weight = weight_from(settings.layout, given)
        factors = list(given)
        needs_x, _, needs_bias, _, *flags = ctx.needs_input_grad
        own, flags = flags[: -len(factors)], flags[-len(factors) :]
        rows = _row_terms(settings, factors, seed)
        needs = list(zip(flags[0::2], flags[1::2], strict=True))
        grad_W0 = grad_bias = None
        with autocast_off(grad.device.type):
            g: Tensor = rows_of(grad, settings.dtype)  # type: ignore[assignment]
            tokens: Tensor = rows_of(x, settings.dtype)  # type: ignore[assignment]
            grad_x = g @ dense(W0, settings.dtype) if needs_x else None
            backward = _backward_in_torch
            if u.dtype == torch.float32 and isinstance(
                skinny.kernels_for(tokens), cpu_kernels.CpuKernels
            ):
                backward = _backward_compiled
            gradients = backward(tokens, g.contiguous(), u, rows, grad_x, needs)
            if own[0] and isinstance(W0, Tensor):
                grad_W0 = (g.t() @ tokens).to(W0.dtype)
            if needs_bias:
                grad_bias = g.sum(0).to(bias.dtype)
        if grad_x is not None:
            grad_x = grad_x.to(x.dtype).view(x.shape)
        of_weight = [grad_W0] + [None] * (len(own) - 1)
        return grad_x, None, grad_bias, None, *of_weight, *gradients


def _row_terms(settings: _Settings, factors: Sequence[Tensor], seed: Tensor | None) -> PerRowTerms:
    pairs = zip(settings.constants, factors[0::2], factors[1::2], strict=True)
    terms = [LowRankTerm(A, B, scaling, p, seed if p else None) for (scaling, p), A, B in pairs]
    return PerRowTerms(terms, settings.index)


Needs = list[tuple[bool, bool]]
"""Whether (A, B) of each term need a gradient."""


def _backward_compiled(
    tokens: Tensor, g: Tensor, u: Tensor, rows: PerRowTerms, grad_x: Tensor | None, needs: Needs
) -> list[Tensor | None]:
    """Return the gradients of A and B in turn, and add to dL/dx."""
    kernels: cpu_kernels.CpuKernels = skinny.kernels_for(tokens)
    spans = rows.spans(tokens.shape[0] // len(rows.index))
    gradients = [
        cpu_kernels.zeros_float32(factor.shape) if wanted else None
        for term, pair in zip(rows.terms, needs, strict=True)
        for factor, wanted in zip((term.A, term.B), pair, strict=True)
    ]
    of_A, of_B = gradients[0::2], gradients[1::2]
    grad_u = torch.empty_like(u)
    up_groups = [_up_group(*span, rows.terms, of_B[span[2]]) for span in spans]
    kernels.up_backward_groups(g, Groups(up_groups), u, grad_u)
    if grad_x is not None or any(gradient is not None for gradient in of_A):
        down_groups = [_down_group(*span, rows.terms, of_A[span[2]]) for span in spans]
        kernels.down_backward_groups_(tokens, Groups(down_groups), grad_u, grad_x)
    factors = [factor for term in rows.terms for factor in (term.A, term.B)]
    return [
        None if gradient is None else gradient.to(factor.dtype)
        for gradient, factor in zip(gradients, factors, strict=True)
    ]


def _backward_in_torch(
    tokens: Tensor, g: Tensor, u: Tensor, rows: PerRowTerms, grad_x: Tensor | None, needs: Needs
) -> list[Tensor | None]:
    """Return the gradients of A and B in turn, and add to dL/dx."""
    padded = _Padded.of(rows, g.dtype, g.device)
    g_rows, dropped = _per_row(g, rows), _per_row(_dropped(tokens, rows), rows)
    u_rows = _per_row(u.to(g.dtype), rows)
    grad_u = torch.bmm(g_rows, padded.B)  # (rows, each, r); B holds the scaling
    if grad_x is not None:
        share = torch.bmm(grad_u, padded.A).reshape(tokens.shape)
        grad_x.add_(_dropped(share, rows))
    sums_A = padded.summed(torch.bmm(grad_u.mT, dropped)) if any(a for a, _ in needs) else None
    sums_B = padded.summed(torch.bmm(g_rows.mT, u_rows)) if any(b for _, b in needs) else None
    gradients: list[Tensor | None] = []
    for number, (term, (needs_A, needs_B)) in enumerate(zip(rows.terms, needs, strict=True)):
        r = term.A.shape[0]
        grad_A = sums_A[number, :r].to(term.A.dtype) if needs_A and sums_A is not None else None
        grad_B = None
        if needs_B and sums_B is not None:
            grad_B = (term.scaling * sums_B[number, :, :r]).to(term.B.dtype)
        gradients += [grad_A, grad_B]
    return gradients


class _Padded(NamedTuple):
    """The factors of each row, padded with zeros to one rank; all zero for rows without."""

    A: Tensor
    """(rows, r, in)."""
    B: Tensor
    """s B, (rows, out, r)."""
    index: Tensor
    """(rows,), int64; the number of terms for rows without."""
    terms: int

    @classmethod
    def of(cls, rows: PerRowTerms, dtype: torch.dtype, device: torch.device) -> "_Padded":
        r, terms = rows.largest_rank, rows.terms
        none = len(terms)
        index = torch.tensor([none if i < 0 else i for i in rows.index], device=device)
        As = [F.pad(term.A.to(dtype), (0, 0, 0, r - term.A.shape[0])) for term in terms]
        Bs = [F.pad(term.scaling * term.B.to(dtype), (0, r - term.B.shape[1])) for term in terms]
        stacked_A = torch.stack([*As, torch.zeros_like(As[0])])
        stacked_B = torch.stack([*Bs, torch.zeros_like(Bs[0])])
        return cls(stacked_A[index], stacked_B[index], index, none)

    def summed(self, parts: Tensor) -> Tensor:
        """Sum (rows, m, n) by adapter, in float32 at least: (terms + 1, m, n)."""
        wide = parts.to(torch.promote_types(parts.dtype, torch.float32))
        return wide.new_zeros(self.terms + 1, *parts.shape[1:]).index_add_(0, self.index, wide)


def _per_row(x: Tensor, rows: PerRowTerms) -> Tensor:
    """View (tokens, width) as (rows, tokens of each, width)."""
    return x.view(len(rows.index), -1 if x.shape[0] else 0, x.shape[1])


def _dropped(x: Tensor, rows: PerRowTerms) -> Tensor:
    """Drop elements of (tokens, width) with the probability of each row's update."""
    by_row = [rows.terms[i].drop_probability if i >= 0 else 0.0 for i in rows.index]
    seed = next((term.seed for term in rows.terms if term.seed is not None), None)
    if seed is None or not any(by_row):
        return x
    dropped = x
    each = x.shape[0] // len(by_row)
    for p in dict.fromkeys(p for p in by_row if p > 0):
        has_p = torch.tensor([own == p for own in by_row], device=x.device)
        candidate = skinny.dropped(x, p, seed)
        if all(own == p for own in by_row):
            return candidate
        dropped = torch.where(has_p.repeat_interleave(each)[:, None], candidate, dropped)
    return dropped
