"""Forward and backward of adapted linear layers that read one activation, as plain functions.

`low_rank.py` and `mlp.py` wrap them in autograd nodes. With tokens as rows, layer i computes

    h_i = x W_iᵀ + b_i + Σ s u Bᵀ      with u = drop(x) Aᵀ

The A of all terms under one mask are stacked, so x is read, and dropped, once for all layers.
Given g_i = dL/dh_i:

    dL/dB = s g_iᵀ u                                            (out_i, r)
    dL/du = s g_i B                                             (tokens, r)
    dL/dA = (dL/du)ᵀ drop(x)                                    (r, in)
    dL/dx = Σ g_i W_i + drop'(Σ dL/du A)                        (tokens, in)

drop is linear, an elementwise product with a mask, so drop' is that same product; the mask is
recomputed from its seed. Sums over layers are computed in place, in one buffer.

For many tokens and a wide dtype, the sum W_i + s B A is computed first, which saves the products
with u and dL/du: the two bracketings of RunLoRA (Cherniuk et al. 2023, arXiv:2312.03415).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.ops import skinny
from lorakit.ops.quantized import Weight, dense, linear


class LowRankTerm(NamedTuple):
    """One update on the low-rank path of a layer."""

    A: Tensor
    """Down-projection, (r, in)."""
    B: Tensor
    """Up-projection, (out, r)."""
    scaling: float
    """Dimensionless factor s."""
    drop_probability: float = 0.0
    """Dropout on this term's input; needs a seed when above 0."""
    seed: Tensor | None = None
    """0-dimensional int64 tensor from `draw_seed`; terms with the same one share their mask."""


class LinearOperands(NamedTuple):
    """One adapted linear layer."""

    W0: Weight
    """Weight, (out, in), usually frozen; a transposed view or a quantised weight also works."""
    bias: Tensor | None
    """(out,)."""
    terms: Sequence[LowRankTerm]
    """Updates to add."""


class LinearNeeds(NamedTuple):
    """The gradients that one layer needs."""

    W0: bool
    bias: bool
    factors: Sequence[tuple[bool, bool]]
    """Whether (A, B) of each term need gradients."""


class LinearGradients(NamedTuple):
    """The gradients of one layer, each None if it is not needed."""

    W0: Tensor | None
    bias: Tensor | None
    factors: Sequence[tuple[Tensor | None, Tensor | None]]


class _Stack(NamedTuple):
    """Terms of any layers that share a mask, with A stacked to (sum of r, in)."""

    members: tuple[tuple[int, int], ...]
    """(layer, term) of each stacked term."""
    ranks: tuple[int, ...]
    A: Tensor
    drop_probability: float
    seed: Tensor | None


MERGE_CROSSOVER = 1.5
"""Tokens above this many times in·out/(in+out) are cheaper with W0 + s B A computed first; doubled
if gradients are needed, as these need u in any case. By operations it is 1; computing the sum is
also traffic. Measured by `python -m benchmarks.bracketing`, see docs/performance.md."""


def merges(tokens: int, layers: Sequence[LinearOperands], dtype: torch.dtype, trains: bool) -> bool:
    """Return whether W0 + s B A is computed first.

    Never in 16 bits, where small updates would be lost in rounding the sum, nor under dropout,
    which acts on the low-rank path alone, nor while compiling, as the number of tokens may be
    symbolic there.
    """
    if dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return False
    if any(term.seed is not None for layer in layers for term in layer.terms):
        return False
    products = sum(layer.W0.shape[0] * layer.W0.shape[1] for layer in layers)
    sums = sum(layer.W0.shape[0] + layer.W0.shape[1] for layer in layers)
    return tokens * sums > (2 if trains else 1) * MERGE_CROSSOVER * products


def infer(x: Tensor, layer: LinearOperands) -> Tensor:
    """Compute a layer's output if no gradients will be needed.

    Args:
        x: (*, in), in the compute dtype.
        layer: The layer.

    Returns: (*, out).
    """
    rows = x.reshape(-1, x.shape[-1])
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    if merges(rows.shape[0], (layer,), x.dtype, trains=False):
        return F.linear(x, _merged_weight(layer, x.dtype), bias)
    h = linear(x, layer.W0, bias)
    flat = h.view(-1, h.shape[-1])
    for A, B, scaling, p, seed in layer.terms:
        skinny.add_(flat, rows, A, B, scaling, p, seed)
    return h


def forward(rows: Tensor, layers: Sequence[LinearOperands]) -> tuple[list[Tensor], list[Tensor]]:
    """Compute every layer's output, and u for the gradients.

    Args:
        rows: x, (tokens, in), in the compute dtype.
        layers: The layers that read it.

    Returns: The outputs, (tokens, out) each, and u for each stack of terms, (tokens, sum of r).
    """
    merged = merges(rows.shape[0], layers, rows.dtype, trains=True)
    hs = [_base_product(rows, layer, merged) for layer in layers]
    us = []
    for stack in _stacks(layers):
        u = skinny.down(rows, stack.A, stack.drop_probability, stack.seed)
        us.append(u)
        if merged:
            continue
        for (layer, term), part in _parts(stack, u):
            B, scaling = layers[layer].terms[term].B, layers[layer].terms[term].scaling
            skinny.up_(hs[layer], part, B, scaling)
    return hs, us


def _base_product(rows: Tensor, layer: LinearOperands, merged: bool) -> Tensor:
    weight = _merged_weight(layer, rows.dtype) if merged else dense(layer.W0, rows.dtype)
    if layer.bias is None:
        return rows @ weight.t()
    return torch.addmm(layer.bias.to(rows.dtype), rows, weight.t())


def _merged_weight(layer: LinearOperands, dtype: torch.dtype) -> Tensor:
    """Return W0 + Σ s B A in the compute dtype, which is a wide one."""
    weight = dense(layer.W0, dtype)
    for A, B, scaling, *_ in layer.terms:
        if isinstance(layer.W0, Tensor):
            weight = torch.addmm(weight, B.to(dtype), A.to(dtype), alpha=scaling)
        else:  # the buffer of a quantised weight may be changed
            weight.addmm_(B.to(dtype), A.to(dtype), alpha=scaling)
    return weight


def backward(
    rows: Tensor | None,
    layers: Sequence[LinearOperands],
    us: Sequence[Tensor],
    gs: Sequence[Tensor | None],
    needs_x: bool,
    needs: Sequence[LinearNeeds],
) -> tuple[Tensor | None, list[LinearGradients]]:
    """Compute the gradients of `forward`.

    Args:
        rows: As in forward; None if no A and no W0 needs a gradient.
        layers: As in forward.
        us: The second result of forward.
        gs: dL/dh of each layer, (tokens, out); None if it has no gradient.
        needs_x: Whether dL/dx is needed.
        needs: The gradients that each layer needs.

    Returns: dL/dx, (tokens, in), and the gradients of each layer; those of factors in their dtypes.
    """
    given = next((g for g in gs if g is not None), None)
    nothing = [LinearGradients(None, None, [(None, None)] * len(la.terms)) for la in layers]
    if given is None:
        return None, nothing
    merged = merges(given.shape[0], layers, given.dtype, trains=True)
    grad_x = _base_grad_x(layers, gs, merged) if needs_x else None
    factors: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]] = {}
    for position, stack in enumerate(_stacks(layers)):
        u = us[position] if us else None
        _stack_backward(stack, rows, u, layers, gs, grad_x, needs, merged=merged, gradients=factors)
    gradients = []
    for index, (layer, g, need) in enumerate(zip(layers, gs, needs, strict=True)):
        grad_W0 = grad_bias = None
        if g is not None and need.W0 and rows is not None and isinstance(layer.W0, Tensor):
            grad_W0 = (g.t() @ rows).to(layer.W0.dtype)
        if g is not None and need.bias and layer.bias is not None:
            grad_bias = g.sum(0).to(layer.bias.dtype)
        own = [factors.get((index, term), (None, None)) for term in range(len(layer.terms))]
        gradients.append(LinearGradients(grad_W0, grad_bias, own))
    return grad_x, gradients


def _base_grad_x(
    layers: Sequence[LinearOperands], gs: Sequence[Tensor | None], merged: bool
) -> Tensor | None:
    """Return Σ g_i W_i, summed up in one buffer."""
    grad_x = None
    for layer, g in zip(layers, gs, strict=True):
        if g is None:
            continue
        weight = _merged_weight(layer, g.dtype) if merged else dense(layer.W0, g.dtype)
        grad_x = g @ weight if grad_x is None else grad_x.addmm_(g, weight)
    return grad_x


def _stack_backward(
    stack: _Stack,
    rows: Tensor | None,
    u: Tensor | None,
    layers: Sequence[LinearOperands],
    gs: Sequence[Tensor | None],
    grad_x: Tensor | None,
    needs: Sequence[LinearNeeds],
    *,
    merged: bool,
    gradients: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]],
) -> None:
    """Store the factors' gradients of one stack in `gradients`, and add its term to dL/dx."""
    needs_A = [needs[layer].factors[term][0] for layer, term in stack.members]
    adds_to_x = grad_x is not None and not merged
    like = next(g for g in gs if g is not None)
    u = u if u is not None else like.new_empty(like.shape[0], sum(stack.ranks))
    grad_u = torch.empty_like(u)
    grads_B: list[Tensor | None] = []
    for (layer, term), (part, grad_part) in zip(
        stack.members,
        zip(u.split(stack.ranks, 1), grad_u.split(stack.ranks, 1), strict=True),
        strict=True,
    ):
        g, (_, B, scaling, *_) = gs[layer], layers[layer].terms[term]
        if g is None:
            grad_part.zero_()
            grads_B.append(None)
            continue
        grad_B = skinny.up_backward(g, part, B, scaling, grad_part, needs[layer].factors[term][1])
        grads_B.append(None if grad_B is None else grad_B.to(B.dtype))
    grad_A = None
    if any(needs_A) and rows is not None:
        grad_A = skinny.down_backward_(
            *(rows, stack.A, grad_u, stack.drop_probability, stack.seed),
            grad_x if adds_to_x else None,
            True,
        )
    elif adds_to_x:
        skinny.down_backward_(
            *(grad_x, stack.A, grad_u, stack.drop_probability, stack.seed, grad_x, False)  # type: ignore[arg-type]
        )
    parts = [None] * len(stack.members) if grad_A is None else grad_A.split(stack.ranks)
    for key, wants, part, grad_B in zip(stack.members, needs_A, parts, grads_B, strict=True):
        dtype = layers[key[0]].terms[key[1]].A.dtype
        has_gradient = wants and part is not None and gs[key[0]] is not None
        gradients[key] = (part.to(dtype) if has_gradient else None, grad_B)  # type: ignore[union-attr]


def _stacks(layers: Sequence[LinearOperands]) -> Iterator[_Stack]:
    """Group the terms that share a mask, in the order of the layers."""
    gathered: list[tuple[float, Tensor | None, list[tuple[int, int]]]] = []
    for index, layer in enumerate(layers):
        for number, term in enumerate(layer.terms):
            p = term.drop_probability if term.seed is not None else 0.0
            for other_p, seed, members in gathered:
                if other_p == p and seed is term.seed:
                    members.append((index, number))
                    break
            else:
                gathered.append((p, term.seed, [(index, number)]))
    for p, seed, members in gathered:
        As = [layers[layer].terms[term].A for layer, term in members]
        stacked = As[0] if len(As) == 1 else torch.cat(As)
        yield _Stack(tuple(members), tuple(A.shape[0] for A in As), stacked, p, seed)


def _parts(stack: _Stack, u: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    yield from zip(stack.members, u.split(stack.ranks, 1), strict=True)
