"""Attention over a few tokens in bfloat16 on a CPU, with gradients from products of all heads.

torch's kernel for the gradients multiplies one block of one head after the other. With so few
tokens most of its time is the setup of these products, several times what the products of all heads
together take. With S = s Q Kᵀ + mask, P = softmax(S), O = P V and g = dL/dO

    dL/dV = Pᵀ g
    dL/dS = P (g Vᵀ - rowsum(g O))                  elementwise products with P and of g and O
    dL/dQ = s dL/dS K
    dL/dK = s dL/dSᵀ Q

Forward is torch's, with the same bits. P is computed again in backward; S and g Vᵀ are in float32,
so that the gradients are as exact as torch's.
"""

# torch gives the parameters of Function.backward no names.
# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MOST_TOKENS = 64
"""With up to so many tokens, gradients take half of torch's time or less, and P, which torch does
not keep in memory as a whole, is small beside the activations."""


def takes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Return whether `short_attention` is the faster way to these operands' gradients.

    Args:
        q: Queries, (rows, heads, tokens, width).
        k: Keys, (rows, heads or a part of them, tokens, width).
        v: Values, as k.
        mask: (rows or 1, heads or 1, tokens, tokens), or None.
    """
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and any(each.requires_grad for each in (q, k, v))
        and all(each.is_cpu and each.dtype == torch.bfloat16 for each in (q, k, v))
        and 0 < q.shape[2] <= _MOST_TOKENS
        and k.shape == v.shape == (q.shape[0], k.shape[1], *q.shape[2:])
        and q.shape[1] % k.shape[1] == 0
        and all(each.stride(-1) == 1 for each in (q, k, v))
        and (mask is None or (mask.ndim == 4 and not mask.requires_grad))
        and torch.backends.cuda.flash_sdp_enabled()  # despite its name, the CPU's too
    )


def short_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    """Return softmax(s Q Kᵀ + mask) V, (rows, heads, tokens, width).

    Args:
        q: Queries, (rows, heads, tokens, width).
        k: Keys, (rows, heads or a part of them, tokens, width), each read by as many heads.
        v: Values, as k.
        mask: True where a query reads a key, or what is added to S; None for all.
        is_causal: Whether a token reads those up to itself; then there is no mask.
        scale: s; None for 1 / sqrt(width).

    Memory: saves q, k, v, the mask and the output.
    """
    if k.shape[1] != q.shape[1]:
        k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _ShortAttention.apply(q, k, v, mask, is_causal, scale)  # type: ignore[return-value]  # `apply` has no types


class _ShortAttention(torch.autograd.Function):
    """The formulas at the top of the file."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float,
    ) -> Tensor:
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        output, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(q, k, v, mask, output)
        ctx.is_causal, ctx.scale = is_causal, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, output = ctx.saved_tensors
        S = torch.matmul(q.float(), k.float().mT).mul_(ctx.scale)  # (rows, heads, tokens, tokens)
        if mask is not None:
            S.add_(mask)
        elif ctx.is_causal:
            S.masked_fill_(torch.ones(S.shape[-2:], dtype=torch.bool).triu_(1), -torch.inf)
        # A token may read none; its row of P is zero.
        P = torch.softmax(S, -1) if mask is None else torch.ops.aten._safe_softmax(S, -1)
        wide = g.float()
        from_output = (wide * output).sum(-1, keepdim=True)
        grad_v = torch.matmul(P.to(g.dtype).mT, g)
        grad_S = torch.matmul(wide, v.float().mT).sub_(from_output).mul_(P).mul_(ctx.scale)
        thin = grad_S.to(g.dtype)
        return torch.matmul(thin, k), torch.matmul(thin.mT, q), grad_v, None, None, None
