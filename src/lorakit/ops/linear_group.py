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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorakit.ops import skinny
from lorakit.ops.operands import (
    LinearGradients,
    LinearNeeds,
    LinearOperands,
    TermGradients,
)
from lorakit.ops.quantized import dense, linear
from lorakit.ops.row_scale import factors, may_write_over, up_scaled, up_scaled_backward
from lorakit.ops.weight_products import backward_product, forward_product


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
        h = forward_product(x, _merged_weight(layer, x.dtype), early)
    else:
        h = linear(x, layer.W0, early)
        flat = h.view(-1, h.shape[-1])
        for A, B, scaling, p, seed, _ in layer.terms:
            skinny.add_(flat, x2d, A, B, scaling, p, seed)
    return h if scale is None else up_scaled(h, factors(scale), bias, over=True)


class Outputs(NamedTuple):
    """What `forward` returns."""

    hs: list[Tensor]
    """h of each layer, (tokens, out)."""
    vs: list[Tensor | None]
    """The sum v of each layer whose rows are scaled; None where h is v, or was written over it."""
    us: list[Tensor]
    """u of each stack of terms, (tokens, sum of r)."""


def forward(
    x2d: Tensor,
    layers: Sequence[LinearOperands],
    dtype: torch.dtype | None = None,
    *,
    writes_over: bool = False,
) -> Outputs:
    """Compute every layer's output, and what the gradients need.

    Args:
        x2d: x, (tokens, in), in the compute dtype.
        layers: The layers that read it.
        dtype: dtype of the outputs; None for that of x.
        writes_over: Whether nobody else will change the outputs, so that scaled rows may be
            written over their sums.
    """
    dtype = dtype or x2d.dtype
    merged = merges(x2d.shape[0], layers, x2d.dtype, trains=True)
    sums = [_base_product(x2d, layer, merged) for layer in layers]
    us: list[Tensor] = []
    scaled_terms: dict[int, tuple[Tensor, Tensor, float]] = {}
    for stack in _stacks(layers):
        u = skinny.down(x2d, stack.A, stack.drop_probability, stack.seed)
        us.append(u)
        if merged:
            continue
        for (layer, term), share in _shares(stack, u):
            B, scaling = layers[layer].terms[term].B, layers[layer].terms[term].scaling
            if layers[layer].row_scale is not None:
                scaled_terms[layer] = (share, B, scaling)
            else:
                skinny.up_(sums[layer], share, B, scaling)
    hs: list[Tensor] = []
    vs: list[Tensor | None] = []
    for index, (v, layer) in enumerate(zip(sums, layers, strict=True)):
        if layer.row_scale is None:
            hs.append(v.to(dtype))
            vs.append(None)
            continue
        over = writes_over and dtype == v.dtype and may_write_over(v, layer)
        c = factors(layer.row_scale, invertible=over)
        hs.append(up_scaled(v, c, layer.bias, scaled_terms.get(index), dtype=dtype, over=over))
        vs.append(None if over else v)
    return Outputs(hs, vs, us)


def output_of(v: Tensor, layer: LinearOperands) -> Tensor:
    """Return h of a layer whose rows are scaled from the sum v that `forward` returned."""
    if layer.row_scale is None:
        return v
    return up_scaled(v, factors(layer.row_scale), layer.bias)


def _base_product(x2d: Tensor, layer: LinearOperands, merged: bool) -> Tensor:
    weight = _merged_weight(layer, x2d.dtype) if merged else dense(layer.W0, x2d.dtype)
    if layer.bias is None or layer.row_scale is not None:
        return forward_product(x2d, weight)
    return forward_product(x2d, weight, layer.bias.to(x2d.dtype))


def _merged_weight(layer: LinearOperands, dtype: torch.dtype) -> Tensor:
    """Return W0 + Σ s B A in the compute dtype, which is a wide one."""
    weight = dense(layer.W0, dtype)
    for A, B, scaling, *_ in layer.terms:
        if isinstance(layer.W0, Tensor):
            weight = torch.addmm(weight, B.to(dtype), A.to(dtype), alpha=scaling)
        else:  # the buffer of a quantized weight may be changed
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
    written_over: Sequence[bool] | None = None,
) -> tuple[Tensor | None, list[LinearGradients]]:
    """Compute the gradients of `forward`.

    Args:
        x2d: As in forward; None if no A and no W0 needs a gradient.
        layers: As in forward.
        us: As forward returned them; empty if no B needs a gradient.
        vs: v of each layer whose rows are scaled, or h where that was written over v; read where
            the lengths of rows need a gradient.
        gs: dL/dh of each layer, (tokens, out); None if it has no gradient.
        needs_x: Whether dL/dx is needed.
        needs: The gradients that each layer needs.
        written_over: Which of vs are outputs; then gs may be written over too. None for none.

    Returns: dL/dx, (tokens, in), and the gradients of each layer; those of factors in their dtypes.
    """
    given = next((g for g in gs if g is not None), None)
    if given is None:
        nothing = [LinearGradients(None, None, [TermGradients()] * len(la.terms)) for la in layers]
        return None, nothing
    merged = merges(given.shape[0], layers, given.dtype, trains=True)
    biases = [
        g.sum(0).to(layer.bias.dtype)
        if need.bias and not (g is None or layer.bias is None)
        else None
        for layer, g, need in zip(layers, gs, needs, strict=True)
    ]
    through = _Through(layers, [*gs], [*vs], needs, written_over)
    stacks = [*_stacks(layers)]
    grads_u = [
        through.stack(stack, us[position] if us else None) for position, stack in enumerate(stacks)
    ]
    grad_x = _base_grad_x(layers, through.gs, merged) if needs_x else None
    grads_A: dict[tuple[int, int], Tensor] = {}
    for stack, grad_u in zip(stacks, grads_u, strict=True):
        grads_A |= _down_backward(
            stack, x2d, grad_u, layers, through.gs, None if merged else grad_x, needs
        )
    gradients: list[LinearGradients] = []
    for index, (layer, need) in enumerate(zip(layers, needs, strict=True)):
        keys = [(index, number) for number in range(len(layer.terms))]
        terms = [TermGradients(grads_A.get(key), through.grads_B.get(key)) for key in keys]
        grad_W0, g = None, through.gs[index]
        if need.W0 and x2d is not None and g is not None and isinstance(layer.W0, Tensor):
            grad_W0 = (g.t() @ x2d).to(layer.W0.dtype)
        if index in through.lengths:
            terms = [terms[0]._replace(lengths=through.lengths[index])]
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
        grad_x = backward_product(g, weight, grad_x)
    return grad_x


class _Through:
    """Gradients on their way through row scales and up-projections.

    Attributes:
        gs: dL/dv of each layer, once the stacks are through.
        lengths: Gradient of the lengths, by layer.
        grads_B: Gradient of B, by (layer, term).
    """

    def __init__(
        self,
        layers: Sequence[LinearOperands],
        gs: list[Tensor | None],
        vs: Sequence[Tensor | None],
        needs: Sequence[LinearNeeds],
        written_over: Sequence[bool] | None,
    ):
        self.gs = gs
        self.lengths: dict[int, Tensor | None] = {}
        self.grads_B: dict[tuple[int, int], Tensor | None] = {}
        self._layers, self._vs, self._needs = layers, vs, needs
        self._over = written_over

    def stack(self, stack: _Stack, u: Tensor | None) -> Tensor:
        """Return dL/du of a stack, (tokens, sum of r)."""
        like = next(g for g in self.gs if g is not None)
        u = u if u is not None else like.new_empty(like.shape[0], sum(stack.ranks))
        grad_u = torch.empty_like(u)
        shares = zip(u.split(stack.ranks, 1), grad_u.split(stack.ranks, 1), strict=True)
        for (layer, term), (share, grad_share) in zip(stack.members, shares, strict=True):
            g, (_, B, scaling, *_) = self.gs[layer], self._layers[layer].terms[term]
            if g is None:
                grad_share.zero_()
                continue
            needs_B = self._needs[layer].terms[term].B
            if self._layers[layer].row_scale is None:
                grad_B = skinny.up_backward(g, share, B, scaling, grad_share, needs_B)
            else:
                grad_B = self._scale(layer, g, (share, B, scaling), grad_share, needs_B)
            self.grads_B[layer, term] = None if grad_B is None else grad_B.to(B.dtype)
        return grad_u

    def _scale(
        self,
        layer: int,
        g: Tensor,
        term: tuple[Tensor, Tensor, float],
        grad_u: Tensor,
        needs_B: bool,
    ) -> Tensor | None:
        scale, lengths = self._layers[layer].row_scale, self._needs[layer].terms[0].lengths
        found = up_scaled_backward(
            g,
            self._vs[layer] if lengths else None,
            scale,  # type: ignore[arg-type]  # None only without row scales
            term,
            grad_u,
            needs_B=needs_B,
            overwrites=self._over is not None,
            is_output=self._over is not None and self._over[layer],
        )
        self.gs[layer], self.lengths[layer] = found.g, found.lengths
        return found.B


def _down_backward(
    stack: _Stack,
    x2d: Tensor | None,
    grad_u: Tensor,
    layers: Sequence[LinearOperands],
    gs: Sequence[Tensor | None],
    grad_x: Tensor | None,
    needs: Sequence[LinearNeeds],
) -> dict[tuple[int, int], Tensor]:
    """Return the gradients of A of one stack, and add its term to dL/dx, if that is given."""
    needs_A = [needs[layer].terms[term].A for layer, term in stack.members]
    given = (stack.A, grad_u, stack.drop_probability, stack.seed)
    if not any(needs_A) or x2d is None:
        if grad_x is not None:
            skinny.down_backward_(grad_x, *given, grad_x, False)
        return {}
    grad_A = skinny.down_backward_(x2d, *given, grad_x, True)
    shares: Any = () if grad_A is None else grad_A.split(stack.ranks)
    return {
        key: share.to(layers[key[0]].terms[key[1]].A.dtype)
        for key, wants, share in zip(stack.members, needs_A, shares, strict=True)
        if wants and gs[key[0]] is not None
    }


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
