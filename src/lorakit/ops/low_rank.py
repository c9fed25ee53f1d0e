"""The adapted linear layer as one autograd node: h = x W0ᵀ + b + Σᵢ sᵢ (dropᵢ(x) Aᵢᵀ) Bᵢᵀ."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.errors import DtypeError, ShapeError
from lorakit.ops.dropout import apply_keep_mask


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
    """0-dimensional int64 tensor from `draw_seed`."""


def low_rank_linear(
    x: Tensor, W0: Tensor, bias: Tensor | None, terms: Sequence[LowRankTerm]
) -> Tensor:
    """Compute x W0ᵀ + b + Σ s (x Aᵀ) Bᵀ without forming BA.

    Under autocast every product runs in autocast's dtype, as it does for a plain linear layer
    (float64 stays float64 there). Otherwise x and W0 must share a dtype, and factors of another
    dtype (float32 adapters on a bfloat16 base) are cast to it; their gradients come back in their
    own dtype.

    Args:
        x: Activations, (*, in); any strides, zero rows included.
        W0: Weight, (out, in), usually frozen; a transposed view does as well.
        bias: (out,) or None.
        terms: Updates to add, at least one.

    Returns: (*, out), device of x, dtype of x (of autocast where that is on).

    Raises:
        ShapeError: W0, A and B do not fit; names the shapes.
        DtypeError: x and W0 differ in dtype outside autocast.

    Memory: saves x itself, shared with its neighbours, and one (tokens, r) tensor for each term.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    _check_shapes(x, W0, terms)
    if x.dtype != torch.float64 and _autocast_is_on(x.device.type):
        compute_dtype = torch.get_autocast_dtype(x.device.type)
    elif x.dtype == W0.dtype:
        compute_dtype = x.dtype
    else:
        raise DtypeError(
            f"The input of an adapted layer is {x.dtype} but its weight is {W0.dtype}, expected "
            "one dtype. Run the model under torch.autocast, or load the base in one dtype."
        )
    constants = tuple((term.scaling, term.drop_probability) for term in terms)
    tensors = [tensor for term in terms for tensor in (term.A, term.B, term.seed)]
    return _LowRankLinear.apply(x, W0, bias, compute_dtype, constants, *tensors)  # type: ignore[return-value]


def _check_shapes(x: Tensor, W0: Tensor, terms: Sequence[LowRankTerm]) -> None:
    out_features, in_features = W0.shape
    if x.shape[-1] != in_features:
        raise ShapeError(
            f"The input of an adapted layer has shape {tuple(x.shape)}, expected its last "
            f"dimension to be {in_features}, as the weight is {(out_features, in_features)}."
        )
    for term in terms:
        r = term.A.shape[0]
        if term.A.shape != (r, in_features) or term.B.shape != (out_features, r):
            raise ShapeError(
                f"lora_A {tuple(term.A.shape)} and lora_B {tuple(term.B.shape)} do not fit the "
                f"weight {(out_features, in_features)}, expected (r, {in_features}) and "
                f"({out_features}, r)."
            )


class _LowRankLinear(torch.autograd.Function):
    """Forward and backward of the adapted linear layer.

    With tokens as rows, u = drop(x) Aᵀ and h = x W0ᵀ + b + s u Bᵀ. Given g = dL/dh:

        dL/dB = s gᵀ u                                          (out, r)
        dL/du = s g B                                           (tokens, r)
        dL/dA = (dL/du)ᵀ drop(x)                                (r, in)
        dL/dx = g W0 + drop'(dL/du A)                           (tokens, in)

    drop is linear, an elementwise product with a mask, so drop' is that same product; the mask
    is made anew from its seed. W0 and b get gradients only if somebody unfroze them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W0: Tensor,
        bias: Tensor | None,
        compute_dtype: torch.dtype,
        constants: tuple[tuple[float, float], ...],
        *tensors: Tensor | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(compute_dtype)  # (tokens, in)
        weight = W0.to(compute_dtype)
        h = rows @ weight.t()
        if bias is not None:
            h.add_(bias.to(compute_dtype))
        low_rank = []
        for (scaling, p), (A, B, seed) in zip(constants, _triples(tensors), strict=True):
            u = _dropped(rows, p, seed) @ A.to(compute_dtype).t()  # (tokens, r)
            h.addmm_(u, B.to(compute_dtype).t(), alpha=scaling)
            low_rank.append(u)
        ctx.save_for_backward(x, W0, *tensors, *low_rank)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.compute_dtype = compute_dtype
        ctx.constants = constants
        # Not a view for autograd, so that what follows may change it in place.
        return torch.ops.aten._unsafe_view(h, (*x.shape[:-1], W0.shape[0]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        # The products run in forward's dtype, also where backward is called under autocast.
        with _autocast_off(grad_h.device.type):
            return _LowRankLinear._gradients(ctx, grad_h)

    @staticmethod
    def _gradients(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        terms = len(ctx.constants)
        x, W0, *saved = ctx.saved_tensors
        factors, low_rank = saved[: 3 * terms], saved[3 * terms :]
        needs_x, needs_W0, needs_bias, _, _, *needs_factors = ctx.needs_input_grad
        dtype = ctx.compute_dtype
        g = grad_h.reshape(-1, grad_h.shape[-1]).to(dtype)  # (tokens, out)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (tokens, in)

        grad_x = g @ W0.to(dtype) if needs_x else None
        grad_factors: list[Tensor | None] = []
        for term, ((scaling, p), (A, B, seed)) in enumerate(
            zip(ctx.constants, _triples(factors), strict=True)
        ):
            needs_A, needs_B = needs_factors[3 * term], needs_factors[3 * term + 1]
            grad_A = grad_B = None
            if needs_B:
                grad_B = (g.t() @ low_rank[term]).mul_(scaling).to(B.dtype)
            if needs_A or grad_x is not None:
                grad_u = (g @ B.to(dtype)).mul_(scaling)  # (tokens, r)
                if needs_A:
                    grad_A = (grad_u.t() @ _dropped(rows, p, seed)).to(A.dtype)
                if grad_x is not None and p > 0:
                    grad_x.add_(_dropped(grad_u @ A.to(dtype), p, seed))
                elif grad_x is not None:
                    grad_x.addmm_(grad_u, A.to(dtype))
            grad_factors += [grad_A, grad_B, None]

        if grad_x is not None:
            grad_x = grad_x.to(x.dtype).view(x.shape)
        grad_W0 = (g.t() @ rows).to(W0.dtype) if needs_W0 else None
        grad_bias = g.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return grad_x, grad_W0, grad_bias, None, None, *grad_factors


def _autocast_is_on(device_type: str) -> bool:
    # The meta device, for one, has no autocast to ask about.
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _autocast_off(device_type: str) -> AbstractContextManager[Any]:
    if _autocast_is_on(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _triples(tensors: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    return list(zip(tensors[0::3], tensors[1::3], tensors[2::3], strict=True))


def _dropped(rows: Tensor, drop_probability: float, seed: Tensor | None) -> Tensor:
    if drop_probability == 0 or seed is None:
        return rows
    return apply_keep_mask(rows, drop_probability, seed)
