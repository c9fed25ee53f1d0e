"""Forward and backward of adapted linear layers that read one activation, as plain functions.

`low_rank.py` and `mlp.py` wrap them in autograd nodes. With tokens as rows, layer i computes

    v_i = x W_iᵀ + Σ s u Bᵀ      with u = drop(x) Aᵀ
    h_i = v_i + b_i,  or  c v_i + b_i  where its only term has a row scale c

The A of all terms under one mask are stacked, so x is read, and dropped, once for all layers.
Given g_i = dL/dh_i, or c dL/dh_i with a row scale:

    dL/dB = s g_iᵀ u                                            (out_i, r)
    dL/du = s g_i B                                             (tokens, r)
    dL/dA = (dL/du)ᵀ drop(x)                                    (r, in)
    dL/dx = Σ g_i W_i + drop'(Σ dL/du A)                        (tokens, in)

drop is linear, an elementwise product with a mask, so drop' is that same product; the mask is
recomputed from its seed. Sums over layers are computed in place, in one buffer.

For many tokens and a wide dtype, the sum W_i + s B A is computed first, which saves the products
with u and dL/du: the two bracketings of RunLoRA (Cherniuk et al. 2023, arXiv:2312.03415).
"""

# Tensor.split has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.ops import skinny
from lorakit.ops.operands import (
    LinearGradients,
    LinearNeeds,
    LinearOperands,
    TermGradients,
)
from lorakit.ops.quantized import dense, linear
from lorakit.ops.row_scale import lengths_gradient, scale_gradient, scaled


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


def most_tokens_apart(layer: LinearOperands, dtype: torch.dtype) -> int:
    """Return the number of tokens up to which `infer` adds terms to the base's product."""
    if dtype not in (torch.float32, torch.float64):
        return sys.maxsize
    out_features, in_features = layer.W0.shape
    return int(MERGE_CROSSOVER * out_features * in_features / (out_features + in_features))


def infer(x: Tensor, layer: LinearOperands) -> Tensor:
    """Compute a layer's output if no gradients will be needed.

    Args:
        x: (*, in), in the compute dtype.
        layer: The layer.

    Returns: (*, out).
    """
    x2d = x.reshape(-1, x.shape[-1])
    scale = layer.row_scale
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    early = None if scale is not None else bias
    if merges(x2d.shape[0], (layer,), x.dtype, trains=False):
        h = F.linear(x, _merged_weight(layer, x.dtype), early)
    else:
        h = linear(x, layer.W0, early)
        flat = h.view(-1, h.shape[-1])
        for A, B, scaling, p, seed, _ in layer.terms:
            skinny.add_(flat, x2d, A, B, scaling, p, seed)
    return h if scale is None else scaled(h, scale, bias)


def forward(x2d: Tensor, layers: Sequence[LinearOperands]) -> tuple[list[Tensor], list[Tensor]]:
    """Compute every layer's sum v, and u for the gradients.

    Args:
        x2d: x, (tokens, in), in the compute dtype.
        layers: The layers that read it.

    Returns: v of each layer, (tokens, out), with its bias unless its rows are scaled; and u for
        each stack of terms, (tokens, sum of r). `outputs` gives the outputs.
    """
    merged = merges(x2d.shape[0], layers, x2d.dtype, trains=True)
    vs = [_base_product(x2d, layer, merged) for layer in layers]
    us: list[Tensor] = []
    for stack in _stacks(layers):
        u = skinny.down(x2d, stack.A, stack.drop_probability, stack.seed)
        us.append(u)
        if merged:
            continue
        for (layer, term), share in _shares(stack, u):
            B, scaling = layers[layer].terms[term].B, layers[layer].terms[term].scaling
            skinny.up_(vs[layer], share, B, scaling)
    return vs, us


def outputs(
    vs: Sequence[Tensor], layers: Sequence[LinearOperands], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Return h of each layer from what `forward` returned: v itself where no rows are scaled.

    Args:
        vs: The first result of forward.
        layers: As in forward.
        dtype: dtype of the outputs; None for that of v.
    """
    hs = [v if dtype is None else v.to(dtype) for v in vs]
    return [
        h if layer.row_scale is None else scaled(h, layer.row_scale, layer.bias)
        for h, layer in zip(hs, layers, strict=True)
    ]


def _base_product(x2d: Tensor, layer: LinearOperands, merged: bool) -> Tensor:
    weight = _merged_weight(layer, x2d.dtype) if merged else dense(layer.W0, x2d.dtype)
    if layer.bias is None or layer.row_scale is not None:
        return x2d @ weight.t()
    return torch.addmm(layer.bias.to(x2d.dtype), x2d, weight.t())


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
    x2d: Tensor | None,
    layers: Sequence[LinearOperands],
    us: Sequence[Tensor],
    vs: Sequence[Tensor | None],
    gs: Sequence[Tensor | None],
    needs_x: bool,
    needs: Sequence[LinearNeeds],
    overwrites: bool = False,
) -> tuple[Tensor | None, list[LinearGradients]]:
    """Compute the gradients of `outputs` of `forward`.

    Args:
        x2d: As in forward; None if no A and no W0 needs a gradient.
        layers: As in forward.
        us: The second result of forward.
        vs: The first result of forward; read where lengths of rows need a gradient.
        gs: dL/dh of each layer, (tokens, out); None if it has no gradient.
        needs_x: Whether dL/dx is needed.
        needs: The gradients that each layer needs.
        overwrites: Whether gs may be written over, which saves a pass where rows are scaled.

    Returns: dL/dx, (tokens, in), and the gradients of each layer; those of factors in their dtypes.
    """
    given = next((g for g in gs if g is not None), None)
    if given is None:
        nothing = [LinearGradients(None, None, [TermGradients()] * len(la.terms)) for la in layers]
        return None, nothing
    merged = merges(given.shape[0], layers, given.dtype, trains=True)
    pairs = list(zip(layers, gs, needs, strict=True))
    biases = [
        g.sum(0).to(layer.bias.dtype)
        if need.bias and not (g is None or layer.bias is None)
        else None
        for layer, g, need in pairs
    ]
    lengths = [
        lengths_gradient(g, v, layer.row_scale)
        if not (g is None or v is None or layer.row_scale is None) and need.terms[0].lengths
        else None
        for (layer, g, need), v in zip(pairs, vs, strict=True)
    ]
    scaled_gs = [
        g
        if g is None or layer.row_scale is None
        else scale_gradient(g, layer.row_scale, overwrites)
        for layer, g, _ in pairs
    ]
    grad_x = _base_grad_x(layers, scaled_gs, merged) if needs_x else None
    factors: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]] = {}
    for position, stack in enumerate(_stacks(layers)):
        u = us[position] if us else None
        _stack_backward(
            stack, x2d, u, layers, scaled_gs, grad_x, needs, merged=merged, gradients=factors
        )
    gradients: list[LinearGradients] = []
    for index, (layer, _, need) in enumerate(pairs):
        terms = [TermGradients(*factors.get((index, i), ())) for i in range(len(layer.terms))]
        grad_W0, g = None, scaled_gs[index]
        if need.W0 and x2d is not None and g is not None and isinstance(layer.W0, Tensor):
            grad_W0 = (g.t() @ x2d).to(layer.W0.dtype)
        if lengths[index] is not None:
            terms = [terms[0]._replace(lengths=lengths[index])]
        gradients.append(LinearGradients(grad_W0, biases[index], terms))
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
    x2d: Tensor | None,
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
    needs_A = [needs[layer].terms[term].A for layer, term in stack.members]
    adds_to_x = grad_x is not None and not merged
    like = next(g for g in gs if g is not None)
    u = u if u is not None else like.new_empty(like.shape[0], sum(stack.ranks))
    grad_u = torch.empty_like(u)
    grads_B: list[Tensor | None] = []
    shares = zip(u.split(stack.ranks, 1), grad_u.split(stack.ranks, 1), strict=True)
    for (layer, term), (share, grad_share) in zip(stack.members, shares, strict=True):
        g, (_, B, scaling, *_) = gs[layer], layers[layer].terms[term]
        if g is None:
            grad_share.zero_()
            grads_B.append(None)
            continue
        needs_B = needs[layer].terms[term].B
        grad_B = skinny.up_backward(g, share, B, scaling, grad_share, needs_B)
        grads_B.append(None if grad_B is None else grad_B.to(B.dtype))
    grad_A = None
    if any(needs_A) and x2d is not None:
        grad_A = skinny.down_backward_(
            *(x2d, stack.A, grad_u, stack.drop_probability, stack.seed),
            grad_x if adds_to_x else None,
            True,
        )
    elif adds_to_x:
        skinny.down_backward_(
            *(grad_x, stack.A, grad_u, stack.drop_probability, stack.seed, grad_x, False)  # type: ignore[arg-type]
        )
    grads_A = [None] * len(stack.members) if grad_A is None else grad_A.split(stack.ranks)
    for key, wants, share, grad_B in zip(stack.members, needs_A, grads_A, grads_B, strict=True):
        dtype = layers[key[0]].terms[key[1]].A.dtype
        is_wanted = wants and gs[key[0]] is not None
        gradients[key] = (share.to(dtype) if is_wanted and share is not None else None, grad_B)


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


def _shares(stack: _Stack, u: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    yield from zip(stack.members, u.split(stack.ranks, 1), strict=True)
