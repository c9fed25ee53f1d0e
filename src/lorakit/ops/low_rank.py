"""Adapted linear layers as one autograd node: h = x W0ᵀ + b + Σᵢ sᵢ (dropᵢ(x) Aᵢᵀ) Bᵢᵀ."""

# torch gives the parameters of Function.backward no names.
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorakit.ops import linear_group
from lorakit.ops.compute_dtype import (
    autocast_off,
    compute_dtype_of,
    flatten_tokens,
    output_dtype_of,
)
from lorakit.ops.dropout import drop
from lorakit.ops.operands import (
    LinearOperands,
    LowRankTerm,
    Spec,
    check_shapes,
    flat_gradients,
    flatten,
    needs_of,
    unflatten,
)
from lorakit.ops.quantized import Weight
from lorakit.ops.row_scale import add_changes


def low_rank_linear(
    x: Tensor, W0: Weight, bias: Tensor | None, terms: Sequence[LowRankTerm]
) -> Tensor:
    """Compute x W0ᵀ + b + Σ s (x Aᵀ) Bᵀ without forming BA; see `low_rank_linears`.

    Args:
        x: Activations, (*, in); any strides, zero rows included.
        W0: Weight, (out, in), usually frozen; a transposed view also works, or a quantized weight,
            whose products run in its compute dtype.
        bias: (out,) or None.
        terms: Updates to add.

    Returns: (*, out), device of x, dtype of x (of autocast where that is on).

    Raises:
        ShapeError: W0, A and B do not fit; names the shapes.
        DtypeError: x and W0 differ in dtype outside autocast.
    """
    return low_rank_linears(x, (LinearOperands(W0, bias, terms),))[0]


def low_rank_product(x: Tensor, term: LowRankTerm) -> Tensor:
    """Compute s (drop(x) Aᵀ) Bᵀ alone, for sums that `low_rank_linear` cannot compute.

    Args:
        x: Activations, (*, in).
        term: The update.

    Returns: (*, out), device of x, dtype of x (of autocast where that is on).

    Memory: saves drop(x) and one (tokens, r) tensor.
    """
    dropped = x if term.seed is None else drop(x, term.drop_probability, term.seed)
    u = F.linear(dropped, term.A.to(x.dtype))
    return F.linear(u, term.B.to(x.dtype)) * term.scaling


def low_rank_linears(x: Tensor, layers: Sequence[LinearOperands]) -> tuple[Tensor, ...]:
    """Compute several adapted linear layers that read the same activation, as one node.

    Under autocast every product runs in autocast's dtype, as it does for a plain linear layer
    (float64 stays float64 there). Otherwise x and the weights must share a dtype; factors of
    another one (float32 adapters on a bfloat16 base) get gradients in their own dtype.

    Args:
        x: Activations, (*, in); any strides, zero rows included.
        layers: Weight, bias and terms of each; weights of one dtype. Terms with the same seed
            tensor share a dropout mask.

    Returns: (*, out) of each layer, device of x, dtype of x (of autocast where that is on).

    Raises:
        ShapeError: A weight, A and B do not fit; names the shapes.
        DtypeError: x and a weight differ in dtype outside autocast.

    Memory: saves x itself, shared with its neighbours, one (tokens, sum of r) tensor, and the
        outputs of layers whose rows are scaled.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    if not all(layer.is_one_product for layer in layers):
        return tuple(_alone(x, layer) for layer in layers)
    for layer in layers:
        check_shapes(x.shape, layer)
    compute_dtype = compute_dtype_of(x, [layer.W0 for layer in layers])
    out_dtype = output_dtype_of(x, compute_dtype)
    if not torch.is_grad_enabled():
        cast = x.to(compute_dtype)
        return tuple(linear_group.infer(cast, layer).to(out_dtype) for layer in layers)
    spec, tensors = flatten(layers)
    return _LowRankLinears.apply(x, spec, compute_dtype, out_dtype, *tensors)  # type: ignore[return-value]  # `apply` has no types


def _alone(x: Tensor, layer: LinearOperands) -> Tensor:
    """Compute a layer by itself; several terms, some of which scale rows, are added one by one."""
    if layer.is_one_product:
        return low_rank_linears(x, (layer,))[0]
    base = low_rank_linear(x, layer.W0, None, ())
    changes = [low_rank_product(x, term).to(base.dtype) for term in layer.terms]
    return add_changes(base, changes, layer.terms, layer.bias)


class _LowRankLinears(torch.autograd.Function):
    """Autograd node of `linear_group.forward` and `backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        spec: Spec,
        compute_dtype: torch.dtype,
        out_dtype: torch.dtype,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        layers = unflatten(spec, tensors)
        x2d: Tensor = flatten_tokens(x, compute_dtype)  # type: ignore[assignment]  # None stays None
        hs, vs, us = linear_group.forward(x2d, layers, out_dtype)
        # Not views for autograd, so that later operations may change them in place.
        outputs = [torch.ops.aten._unsafe_view(h, (*x.shape[:-1], h.shape[-1])) for h in hs]
        needs = needs_of(spec, ctx.needs_input_grad[4:])
        terms = [term for need in needs for term in need.terms]
        reads_x = any(need.W0 for need in needs) or any(term.A for term in terms)
        reads_u = any(term.B for term in terms)
        kept = [
            v if any(term.lengths for term in need.terms) else None
            for v, need in zip(vs, needs, strict=True)
        ]
        ctx.save_for_backward(x if reads_x else None, *tensors, *kept, *(us if reads_u else []))
        ctx.spec, ctx.tensors, ctx.compute_dtype = spec, len(tensors), compute_dtype
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        tensors, vs = saved[: ctx.tensors], saved[ctx.tensors : ctx.tensors + len(grads)]
        layers, us = unflatten(ctx.spec, tensors), saved[ctx.tensors + len(grads) :]
        needs_x, _, _, _, *flags = ctx.needs_input_grad
        # The products run in forward's dtype, also if backward is called under autocast.
        with autocast_off(layers[0].W0.device.type):
            gs = [flatten_tokens(g, ctx.compute_dtype) for g in grads]
            x2d = flatten_tokens(x, ctx.compute_dtype)
            grad_x, gradients = linear_group.backward(
                x2d, layers, us, vs, gs, needs_x, needs_of(ctx.spec, flags)
            )
        if grad_x is not None:
            grad_x = grad_x.to(ctx.dtype).view(ctx.shape)
        return grad_x, None, None, None, *flat_gradients(ctx.spec, gradients, ctx.tensors)
