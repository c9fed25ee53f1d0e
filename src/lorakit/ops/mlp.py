"""A whole adapted MLP as one autograd node that recomputes what is cheap instead of saving it."""

# torch gives the parameters of Function.backward no names.
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Sequence
from typing import Any, Literal

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
from lorakit.ops.operands import (
    LinearOperands,
    Spec,
    check_shapes,
    flat_gradients,
    flatten,
    needs_of,
    unflatten,
)

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


def low_rank_mlp(
    x: Tensor, inner: Sequence[LinearOperands], down: LinearOperands, activation: Activation
) -> Tensor:
    """Compute down(act(gate(x)) * up(x)), or down(act(inner(x))) for one inner layer.

    Args:
        x: Activations, (*, in).
        inner: (gate, up), or the single inner layer; terms may be empty.
        down: The layer back to the model's width. Each layer must be one product.
        activation: Activation of the first inner layer's output.

    Returns: (*, out), device of x, dtype of x (of autocast where that is on).

    Raises:
        ShapeError: A weight, A and B do not fit; names the shapes.
        DtypeError: x and a weight differ in dtype outside autocast.

    Memory: saves the inner layers' outputs, a (tokens, r) tensor for each stack of terms, and x
        unless every inner A is frozen; neither act(gate) nor the input of `down`, which plain
        layers save, the latter for the gradient of its lora_A.
    """
    for layer in inner:
        check_shapes(x.shape, layer)
    check_shapes(torch.Size((*x.shape[:-1], inner[0].W0.shape[0])), down)
    dtype = compute_dtype_of(x, [layer.W0 for layer in (*inner, down)])
    out_dtype = output_dtype_of(x, dtype)
    spec, tensors = flatten([*inner, down])
    return _LowRankMlp.apply(x, spec, dtype, out_dtype, activation, *tensors)  # type: ignore[return-value]  # `apply` has no types


class _LowRankMlp(torch.autograd.Function):
    """The inner layers, the activation and `down`.

    With z = act(gate) * up the input of `down`, and dL/dz from its backward:

        dL/dup = dL/dz * act(gate)
        dL/dgate = dL/dz * up * act'(gate)

    z and act(gate) are recomputed from gate and up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        spec: Spec,
        dtype: torch.dtype,
        out_dtype: torch.dtype,
        activation: Activation,
        *tensors: Tensor | None,
    ) -> Tensor:
        *inner, down = unflatten(spec, tensors)
        hs, vs, us = linear_group.forward(
            x.reshape(-1, x.shape[-1]).to(dtype), inner, writes_over=True
        )
        kept = [h if v is None else v for h, v in zip(hs, vs, strict=True)]
        z = _inputs_of_down(hs, activation)[1]
        (output,), down_vs, down_us = linear_group.forward(z, [down], out_dtype)
        *needs, needs_down = needs_of(spec, ctx.needs_input_grad[5:])
        reads_x = any(need.W0 or any(term.A for term in need.terms) for need in needs)
        if not any(term.lengths for term in needs_down.terms):
            down_vs = [None]
        ctx.save_for_backward(x if reads_x else None, *tensors, *kept, *us, *down_us, *down_vs)
        ctx.spec, ctx.dtype, ctx.activation = spec, dtype, activation
        ctx.counts = (len(tensors), len(kept), len(us), len(down_us))
        ctx.written_over = [v is None for v in vs]
        ctx.shape, ctx.x_dtype = x.shape, x.dtype
        return torch.ops.aten._unsafe_view(output, (*x.shape[:-1], output.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        with autocast_off(grad.device.type):
            g: Tensor = flatten_tokens(grad, ctx.dtype)  # type: ignore[assignment]  # None stays None
            return _LowRankMlp._gradients(ctx, g, x, *_split(saved, ctx.counts))

    @staticmethod
    def _gradients(
        ctx: Any,
        g: Tensor,
        x: Tensor | None,
        tensors: list[Tensor],
        kept: list[Tensor],
        us: list[Tensor],
        down_us: list[Tensor],
        down_vs: list[Tensor],
    ) -> tuple[Tensor | None, ...]:
        *inner, down = unflatten(ctx.spec, tensors)
        needs_x, _, _, _, _, *flags = ctx.needs_input_grad
        *needs_inner, needs_down = needs_of(ctx.spec, flags)
        hs = [
            one if is_output else linear_group.output_of(one, layer)
            for one, layer, is_output in zip(kept, inner, ctx.written_over, strict=True)
        ]
        acted, z = _inputs_of_down(hs, ctx.activation, keeps_acted=True)
        grad_z, down_gradients = linear_group.backward(
            z, [down], down_us, down_vs, [g], True, [needs_down]
        )
        del z
        gs: list[Tensor | None] = []
        if grad_z is not None and len(hs) == 2:
            grad_up = acted.mul_(grad_z)
            gs = [_act_backward(grad_z.mul_(hs[1]), hs[0], ctx.activation), grad_up]
        elif grad_z is not None:
            gs = [_act_backward(grad_z, hs[0], ctx.activation)]
        grad_x, gradients = linear_group.backward(
            flatten_tokens(x, ctx.dtype),
            inner,
            us,
            kept,
            gs,
            needs_x,
            needs_inner,
            ctx.written_over,
        )
        if grad_x is not None:
            grad_x = grad_x.to(ctx.x_dtype).view(ctx.shape)
        flat = flat_gradients(ctx.spec, [*gradients, *down_gradients], len(tensors))
        return grad_x, None, None, None, None, *flat


def _inputs_of_down(
    hs: Sequence[Tensor], activation: Activation, keeps_acted: bool = False
) -> tuple[Tensor, Tensor]:
    """Return act(gate), and the input of `down`; they share memory if the former is not kept."""
    acted = _act(hs[0], activation)
    if len(hs) == 1:
        return acted, acted
    return acted, acted * hs[1] if keeps_acted else acted.mul_(hs[1])


def _split(saved: Sequence[Tensor], counts: tuple[int, ...]) -> list[list[Tensor]]:
    pieces: list[list[Tensor]] = []
    position = 0
    for count in (*counts, len(saved) - sum(counts)):
        pieces.append(list(saved[position : position + count]))
        position += count
    return pieces


def _act(x: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(x)
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def _act_backward(grad: Tensor, x: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, x)
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, x, 0)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward(grad, x, approximate=approximate)
