"""Adapted linear layers as one autograd node: h = x W0ᵀ + b + Σᵢ sᵢ (dropᵢ(x) Aᵢᵀ) Bᵢᵀ."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorakit.errors import DtypeError, ShapeError
from lorakit.ops import linear_group
from lorakit.ops.dropout import drop
from lorakit.ops.linear_group import LinearNeeds, LinearOperands, LowRankTerm
from lorakit.ops.quantized import Layout, QuantizedWeight, Weight, parts, tensor_count, weight_from


def low_rank_linear(
    x: Tensor, W0: Weight, bias: Tensor | None, terms: Sequence[LowRankTerm]
) -> Tensor:
    """Compute x W0ᵀ + b + Σ s (x Aᵀ) Bᵀ without forming BA; see `low_rank_linears`.

    Args:
        x: Activations, (*, in); any strides, zero rows included.
        W0: Weight, (out, in), usually frozen; a transposed view also works, or a quantised weight,
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

    Memory: saves x itself, shared with its neighbours, and one (tokens, sum of r) tensor.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    for layer in layers:
        check_shapes(x.shape, layer)
    compute_dtype = compute_dtype_of(x, layers)
    out_dtype = output_dtype_of(x, compute_dtype)
    if not torch.is_grad_enabled():
        rows = x.to(compute_dtype)
        return tuple(linear_group.infer(rows, layer).to(out_dtype) for layer in layers)
    spec, tensors = flatten(layers)
    return _LowRankLinears.apply(x, spec, compute_dtype, out_dtype, *tensors)  # type: ignore[return-value]


def check_shapes(shape: torch.Size, layer: LinearOperands) -> None:
    """Check the shapes of the input and of a layer's operands.

    Raises:
        ShapeError: They do not fit; names the shapes.
    """
    out_features, in_features = layer.W0.shape
    if shape[-1] != in_features:
        raise ShapeError(
            f"The input of an adapted layer has shape {tuple(shape)}, expected its last "
            f"dimension to be {in_features}, as the weight is {(out_features, in_features)}."
        )
    for term in layer.terms:
        r = term.A.shape[0]
        if term.A.shape != (r, in_features) or term.B.shape != (out_features, r):
            raise ShapeError(
                f"lora_A {tuple(term.A.shape)} and lora_B {tuple(term.B.shape)} do not fit the "
                f"weight {(out_features, in_features)}, expected (r, {in_features}) and "
                f"({out_features}, r)."
            )


def compute_dtype_of(x: Tensor, layers: Sequence[LinearOperands]) -> torch.dtype:
    """Return the dtype the products run in: autocast's, or that of x and the weights.

    Raises:
        DtypeError: x and a weight differ in dtype outside autocast.
    """
    autocast = autocast_dtype(x.device.type)
    if x.dtype != torch.float64 and autocast is not None:
        return autocast
    computed_in: list[torch.dtype] = []
    for layer in layers:
        if isinstance(layer.W0, QuantizedWeight):
            # As in bitsandbytes, the input is cast to the weight's compute dtype.
            wanted = x.dtype if x.dtype == torch.float64 else layer.W0.dtype or x.dtype
            computed_in.append(wanted)
        elif x.dtype != layer.W0.dtype:
            raise DtypeError(
                f"The input of an adapted layer is {x.dtype} but its weight is {layer.W0.dtype}, "
                "expected one dtype. Run the model under torch.autocast, or load the base in one "
                "dtype."
            )
    # If a layer is not quantised, x has its dtype.
    return computed_in[0] if len(computed_in) == len(layers) else x.dtype


def output_dtype_of(x: Tensor, compute_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the outputs: autocast's if that is on, else that of x."""
    is_cast = x.dtype != torch.float64 and autocast_dtype(x.device.type) is not None
    return compute_dtype if is_cast else x.dtype


class TermSpec(NamedTuple):
    """Constants of a term that an autograd node keeps."""

    scaling: float
    drop_probability: float
    seed: int
    """Position among the group's seeds; -1 for none."""


class LayerSpec(NamedTuple):
    """Constants of a layer that an autograd node keeps."""

    layout: Layout | None
    """Layout of its weight; None for a dense one."""
    terms: tuple[TermSpec, ...]


Spec = tuple[LayerSpec, ...]


def flatten(layers: Sequence[LinearOperands]) -> tuple[Spec, list[Tensor | None]]:
    """Return the constants, and the tensors: W0, bias, A and B of each layer; then the seeds."""
    spec = []
    tensors: list[Tensor | None] = []
    seeds: list[Tensor] = []
    for W0, bias, terms in layers:
        layout, own = parts(W0)
        tensors += [*own, bias]
        specs = []
        for A, B, scaling, p, seed in terms:
            tensors += [A, B]
            if seed is None or p == 0:
                specs.append(TermSpec(scaling, 0.0, -1))
                continue
            known = [i for i, other in enumerate(seeds) if other is seed]
            if not known:
                seeds.append(seed)
            specs.append(TermSpec(scaling, p, known[0] if known else len(seeds) - 1))
        spec.append(LayerSpec(layout, tuple(specs)))
    return tuple(spec), [*tensors, *seeds]


def unflatten(spec: Spec, tensors: Sequence[Any]) -> list[LinearOperands]:
    """Undo `flatten`."""
    seeded = [term.seed for _, terms in spec for term in terms]
    count = max(seeded, default=-1) + 1
    seeds = tensors[len(tensors) - count :]
    given = iter(tensors)
    layers = []
    for layout, specs in spec:
        W0, bias = weight_from(layout, given), next(given)
        terms = []
        for scaling, p, seed in specs:
            A, B = next(given), next(given)
            terms.append(LowRankTerm(A, B, scaling, p, seeds[seed] if seed >= 0 else None))
        layers.append(LinearOperands(W0, bias, terms))
    return layers


def needs_of(spec: Spec, flags: Sequence[bool]) -> list[LinearNeeds]:
    """Return which gradients each layer needs, from flags in the order of `flatten`."""
    return [
        LinearNeeds(layer.W0 is True, layer.bias, [(term.A, term.B) for term in layer.terms])  # type: ignore[arg-type,misc]
        for layer in unflatten(spec, [*flags])
    ]


def flat_gradients(
    spec: Spec, gradients: Sequence[linear_group.LinearGradients], tensors: int
) -> list[Tensor | None]:
    """Return gradients in the order of `flatten`, which returned this number of tensors."""
    flat: list[Tensor | None] = []
    for (layout, _), (grad_W0, grad_bias, factors) in zip(spec, gradients, strict=True):
        flat += [grad_W0] if layout is None else [None] * tensor_count(layout)
        flat.append(grad_bias)
        for pair in factors:
            flat += pair
    return flat + [None] * (tensors - len(flat))


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
        rows: Tensor = rows_of(x, compute_dtype)  # type: ignore[assignment]
        hs, us = linear_group.forward(rows, layers)
        # Not views for autograd, so that later operations may change them in place.
        outputs = [
            torch.ops.aten._unsafe_view(h.to(out_dtype), (*x.shape[:-1], h.shape[-1])) for h in hs
        ]
        needs = needs_of(spec, ctx.needs_input_grad[4:])
        reads_x = any(need.W0 or any(A for A, _ in need.factors) for need in needs)
        reads_u = any(B for need in needs for _, B in need.factors)
        ctx.save_for_backward(x if reads_x else None, *tensors, *(us if reads_u else []))
        ctx.spec, ctx.tensors, ctx.compute_dtype = spec, len(tensors), compute_dtype
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        layers, us = unflatten(ctx.spec, saved[: ctx.tensors]), saved[ctx.tensors :]
        needs_x, _, _, _, *flags = ctx.needs_input_grad
        # The products run in forward's dtype, also if backward is called under autocast.
        with autocast_off(layers[0].W0.device.type):
            gs = [rows_of(g, ctx.compute_dtype) for g in grads]
            rows = rows_of(x, ctx.compute_dtype)
            grad_x, gradients = linear_group.backward(
                rows, layers, us, gs, needs_x, needs_of(ctx.spec, flags)
            )
        if grad_x is not None:
            grad_x = grad_x.to(ctx.dtype).view(ctx.shape)
        return grad_x, None, None, None, *flat_gradients(ctx.spec, gradients, ctx.tensors)


def rows_of(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return (tokens, features) in a dtype, or None for None."""
    return None if x is None else x.reshape(-1, x.shape[-1]).to(dtype)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype autocast runs products in, or None if it is off."""
    # Some devices, such as meta, have no autocast.
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def autocast_off(device_type: str) -> AbstractContextManager[Any]:
    """Return a context without autocast; it does nothing if autocast is off."""
    if autocast_dtype(device_type) is not None:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
