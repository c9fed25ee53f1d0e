"""Products of activations with a layer's weight, by the quicker of the libraries that torch brings.

On a CPU torch multiplies float32 matrices with MKL, which uses the 512-bit vectors of a processor
only if Intel made it. oneDNN, which comes with torch too, uses them on all: on an AMD processor
with AVX-512 it takes half of MKL's time, and with AVX2 a tenth less. torch's own operations take
oneDNN for 16 bits alone. Both sum in float32; results differ in their last bits.
"""

# torch gives the parameters of Function.backward no names, and no public names to traces and modes;
# its types say that there is always a trace.
# pyright: reportIncompatibleMethodOverride=false, reportPrivateUsage=false
# pyright: reportUnnecessaryComparison=false

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorakit.ops.native.compiled_library import processor_lines

LEAST_TOKENS = 4
"""Fewer are a matter of reading the weight, which MKL does as quickly."""
LEAST_OPERATIONS = 1 << 21
"""Multiplications, below which calling oneDNN costs more than it saves: 8 us a call."""

ROW_MULTIPLE = 32
"""Rows that `padded_rows` fills up to a multiple of."""

_PLAIN = (Tensor, nn.Parameter)


def forward_product(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b.

    Args:
        x: Activations, (*, in).
        W: (out, in), dtype of x; a transposed view also works.
        bias: (out,), dtype of x; or None.

    Returns: (*, out), dtype of x.
    """
    if not suits_onednn(x, W, bias) or _needs_graph(x, W, bias):
        return F.linear(x, W, bias)
    return _linear(x, W, bias)


def backward_product(g: Tensor, W: Tensor, total: Tensor | None = None) -> Tensor:
    """Return g W, the gradient of x in x Wᵀ.

    Args:
        g: dL/d(x Wᵀ), (tokens, out).
        W: (out, in), dtype of g; a transposed view also works.
        total: (tokens, in), to which the product is added in place; None for a new tensor.

    Returns: (tokens, in), dtype of g; `total` if that is given.
    """
    if not suits_onednn(g, W.t()) or _needs_graph(g, W, None):
        return g @ W if total is None else total.addmm_(g, W)
    product = _linear(g, W.t(), None)
    return product if total is None else total.add_(product)


def frozen_linear(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b with the gradient of x, as of a layer that is not trained.

    Args:
        x: Activations, (*, in).
        W: (out, in), dtype of x; a transposed view also works. If it is trained, torch's own
            operation computes its gradient too.
        bias: (out,), likewise; or None.

    Returns: (*, out), dtype of x, differentiable once.
    """
    is_trained = W.requires_grad or (bias is not None and bias.requires_grad)
    if (is_trained and torch.is_grad_enabled()) or not suits_onednn(x, W, bias):
        return F.linear(x, W, bias)
    return _FrozenLinear.apply(x, W, bias)  # type: ignore[return-value]  # `apply` has no types


class _FrozenLinear(torch.autograd.Function):
    """x Wᵀ + b, with dL/dx = g W for g = dL/d(x Wᵀ + b)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(W)
        return forward_product(x, W, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (W,) = ctx.saved_tensors
        grad_x = backward_product(grad.reshape(-1, grad.shape[-1]), W)
        return grad_x.view(*grad.shape[:-1], -1), None, None


def suits_onednn(x: Tensor, W: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether oneDNN is to compute x Wᵀ + b."""
    if torch.compiler.is_compiling():
        return False
    given = (x, W) if bias is None else (x, W, bias)
    return (
        x.dtype == torch.float32
        and onednn_is_quicker()
        and torch._C._get_tracing_state() is None
        and x.numel() >= LEAST_TOKENS * x.shape[-1]
        and x.numel() * W.shape[0] >= LEAST_OPERATIONS
        and all(type(t) in _PLAIN and t.dtype == torch.float32 and t.is_cpu for t in given)
        and x.shape[-1] == W.shape[-1]  # torch says what is wrong with other shapes
        and x.is_contiguous()
        and (W.is_contiguous() or W.t().is_contiguous())
        and (bias is None or (bias.shape == W.shape[:1] and bias.is_contiguous()))
        and not torch.is_autocast_enabled("cpu")
        and torch._C._len_torch_dispatch_stack() == 0  # such a mode may not know the operation
        and torch._C._functorch.peek_interpreter_stack() is None  # type: ignore[attr-defined]  # torch's private name
    )


def _linear(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    tokens = x.numel() // x.shape[-1]
    surplus = padded_tokens(tokens) - tokens
    x2d = x.view(tokens, -1)
    x2d = F.pad(x2d, (0, 0, 0, surplus)) if surplus else x2d
    product = torch.ops.mkldnn._linear_pointwise.default(x2d, W, bias, "none", [], "")
    # Not a view: what a layer returns may be changed in place.
    return product.resize_(*x.shape[:-1], W.shape[0])


def padded_tokens(tokens: int) -> int:
    """Return the number of rows that a product of so many tokens is computed with.

    oneDNN compiles a product for each number of rows and keeps the code, megabytes of it, which
    hundreds of lengths of batches would make gigabytes. Above 32, only sixteen numbers between a
    power of two and the next are taken: at most 6% more rows.
    """
    step = max(1, (1 << (tokens - 1).bit_length()) >> 5)
    return -(-tokens // step) * step


def padded_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Add rows of zeros up to a multiple of `ROW_MULTIPLE`, where oneDNN is to multiply.

    It is for products of any number of rows up to a few hundred, such as those of the output layer
    with a chunk of tokens, of which oneDNN would keep hundreds.

    Args:
        x: (rows, in).
        dtype: That of the product.

    Returns: (rows and more, in); x itself where oneDNN does not multiply.
    """
    is_compiled = dtype == torch.bfloat16 or (dtype == torch.float32 and onednn_is_quicker())
    surplus = -len(x) % ROW_MULTIPLE
    return F.pad(x, (0, 0, 0, surplus)) if surplus and is_compiled and x.is_cpu else x


def _needs_graph(x: Tensor, W: Tensor, bias: Tensor | None) -> bool:
    tensors = (x, W) if bias is None else (x, W, bias)
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


@cache
def onednn_is_quicker() -> bool:
    """Return whether torch multiplies float32 matrices with MKL on a processor unknown to it.

    `LORAKIT_ONEDNN=0` in the environment leaves all products to torch's own operations.
    """
    return (
        os.environ.get("LORAKIT_ONEDNN") != "0"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and _vendor() == "AuthenticAMD"
    )


def _vendor() -> str:
    """Return who made the processor, in its own words; empty where the system does not tell."""
    lines = processor_lines("vendor_id")
    return lines[0].partition(":")[2].strip() if lines else ""
