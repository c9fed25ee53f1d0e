"""The low-rank path of `grouped.py` in torch operations, for devices without compiled kernels.

The rows of a batch are one batched product of factors that are padded to one rank and gathered for
each row. The segments of a packed sequence differ in length, so each run of them is one product.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.ops import skinny
from lorakit.ops.operands import LowRankTerm
from lorakit.ops.per_row_terms import Needs, PerRowTerms


def add_(h: Tensor, tokens: Tensor, rows: PerRowTerms) -> Tensor:
    """Add s u Bᵀ of each row's update to h in place.

    Args:
        h: (tokens, out).
        tokens: x, (tokens, in), dtype of h.
        rows: The update of each row.

    Returns: u, (tokens, largest r).
    """
    dropped = _drop(tokens, rows)
    if rows.lengths is None:
        padded = _Padded.of(rows, h.dtype, h.device)
        u = torch.bmm(_by_row(dropped, rows), padded.A.mT)  # (rows, each, r)
        _by_row(h, rows).baddbmm_(u, padded.B.mT)
        return u.reshape(tokens.shape[0], rows.largest_rank)
    u = tokens.new_zeros(tokens.shape[0], rows.largest_rank)
    for run, _, term in _runs(tokens, rows):
        A, B = term.A.to(h.dtype), term.B.to(h.dtype)
        narrow = u[run, : A.shape[0]]
        narrow.copy_(dropped[run] @ A.t())
        h[run].addmm_(narrow, B.t(), alpha=term.scaling)
    return u


def backward(
    tokens: Tensor, g: Tensor, u: Tensor, rows: PerRowTerms, grad_x: Tensor | None, needs: Needs
) -> list[Tensor | None]:
    """Return the gradients of A and B in turn, and add to dL/dx in place.

    Args:
        tokens: x, (tokens, in).
        g: dL/dh, (tokens, out).
        u: What `add_` returned.
        rows: The update of each row.
        grad_x: The base's dL/dx, (tokens, in), or None.
        needs: The gradients that are needed.
    """
    if rows.lengths is not None:
        return _backward_by_run(tokens, g, u, rows, grad_x, needs)
    padded = _Padded.of(rows, g.dtype, g.device)
    g_rows, dropped = _by_row(g, rows), _by_row(_drop(tokens, rows), rows)
    u_rows = _by_row(u.to(g.dtype), rows)
    grad_u = torch.bmm(g_rows, padded.B)  # (rows, each, r); B holds the scaling
    if grad_x is not None:
        share = torch.bmm(grad_u, padded.A).reshape(tokens.shape)
        grad_x.add_(_drop(share, rows))
    sums_A = padded.sum_by_slot(torch.bmm(grad_u.mT, dropped)) if any(a for a, _ in needs) else None
    sums_B = padded.sum_by_slot(torch.bmm(g_rows.mT, u_rows)) if any(b for _, b in needs) else None
    gradients: list[Tensor | None] = []
    for number, (term, (needs_A, needs_B)) in enumerate(zip(rows.terms, needs, strict=True)):
        r = term.A.shape[0]
        grad_A = sums_A[number, :r].to(term.A.dtype) if needs_A and sums_A is not None else None
        grad_B = None
        if needs_B and sums_B is not None:
            grad_B = (term.scaling * sums_B[number, :, :r]).to(term.B.dtype)
        gradients += [grad_A, grad_B]
    return gradients


def _backward_by_run(
    tokens: Tensor, g: Tensor, u: Tensor, rows: PerRowTerms, grad_x: Tensor | None, needs: Needs
) -> list[Tensor | None]:
    wide = torch.promote_types(g.dtype, torch.float32)
    sums = [
        torch.zeros_like(factor, dtype=wide) if is_needed else None
        for term, pair in zip(rows.terms, needs, strict=True)
        for factor, is_needed in zip((term.A, term.B), pair, strict=True)
    ]
    dropped = _drop(tokens, rows)
    share_of_x = None if grad_x is None else torch.zeros_like(tokens)
    for run, number, term in _runs(tokens, rows):
        r = term.A.shape[0]
        grad_u = (g[run] @ term.B.to(g.dtype)).mul_(term.scaling)
        if share_of_x is not None:
            share_of_x[run] = grad_u @ term.A.to(g.dtype)
        sum_A, sum_B = sums[2 * number], sums[2 * number + 1]
        if sum_A is not None:
            sum_A.add_(grad_u.t() @ dropped[run])
        if sum_B is not None:
            sum_B.add_(g[run].t() @ u[run, :r].to(g.dtype), alpha=term.scaling)
    if grad_x is not None and share_of_x is not None:
        grad_x.add_(_drop(share_of_x, rows))
    factors = [factor for term in rows.terms for factor in (term.A, term.B)]
    return [
        None if total is None else total.to(factor.dtype)
        for total, factor in zip(sums, factors, strict=True)
    ]


def _runs(tokens: Tensor, rows: PerRowTerms) -> list[tuple[slice, int, LowRankTerm]]:
    spans = rows.spans(len(tokens))
    return [(slice(begin, end), term, rows.terms[term]) for begin, end, term in spans]


class _Padded(NamedTuple):
    """The factors of each row, padded with zeros to one rank; all zero for rows without."""

    A: Tensor
    """(rows, r, in)."""
    B: Tensor
    """s B, (rows, out, r)."""
    row_index: Tensor
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

    def sum_by_slot(self, parts: Tensor) -> Tensor:
        """Sum (rows, m, n) by adapter, in float32 at least: (terms + 1, m, n)."""
        wide = parts.to(torch.promote_types(parts.dtype, torch.float32))
        return wide.new_zeros(self.terms + 1, *parts.shape[1:]).index_add_(0, self.row_index, wide)


def _by_row(x: Tensor, rows: PerRowTerms) -> Tensor:
    """View (tokens, width) as (rows, tokens of each, width)."""
    return x.view(len(rows.index), -1 if x.shape[0] else 0, x.shape[1])


def _drop(x: Tensor, rows: PerRowTerms) -> Tensor:
    """Drop elements of (tokens, width) with the probability of each row's update."""
    if rows.own_tokens is not None:
        return _drop_in_batches(x, rows)
    by_row = [rows.terms[i].drop_probability if i >= 0 else 0.0 for i in rows.index]
    seed = next((term.seed for term in rows.terms if term.seed is not None), None)
    if seed is None or not any(by_row):
        return x
    dropped = x
    lengths = rows.lengths or (x.shape[0] // len(by_row),) * len(by_row)
    each = torch.tensor(lengths, device=x.device)
    for p in dict.fromkeys(p for p in by_row if p > 0):
        has_p = torch.tensor([row_p == p for row_p in by_row], device=x.device)
        candidate = skinny.drop_elements(x, p, seed)
        if all(row_p == p for row_p in by_row):
            return candidate
        dropped = torch.where(has_p.repeat_interleave(each)[:, None], candidate, dropped)
    return dropped


def _drop_in_batches(x: Tensor, rows: PerRowTerms) -> Tensor:
    """Drop elements of (tokens, width), the tokens of each update by the mask of its batch."""
    dropped = x
    spans = rows.spans(x.shape[0])
    for number, term in enumerate(rows.terms):
        places = [torch.arange(begin, end) for begin, end, n in spans if n == number]
        if term.seed is None or not term.drop_probability or not places:
            continue
        place = torch.cat(places).to(x.device)
        values = skinny.drop_elements(x[place], term.drop_probability, term.seed)
        dropped = dropped.index_copy(0, place, values)
    return dropped
