"""The obvious formulas that every op is tested against; never on the training path."""

# Tensor.norm has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch
from torch import Tensor


def low_rank_linear_reference(
    x: Tensor,
    W0: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    dropped_x: Tensor | None = None,
) -> Tensor:
    """Compute x W0ᵀ + b + s (x Aᵀ) Bᵀ, one product after the other.

    Args:
        x: Activations, (*, in).
        W0: Frozen weight, (out, in).
        bias: (out,) or None.
        A: Down-projection, (r, in).
        B: Up-projection, (out, r).
        scaling: Dimensionless factor s.
        dropped_x: Input of the low-rank path after dropout, (*, in); None means x.

    Returns: (*, out).
    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """
    h = x @ W0.T
    if bias is not None:
        h = h + bias
    low_rank_input = x if dropped_x is None else dropped_x
    return h + scaling * (low_rank_input @ A.T) @ B.T


def dora_linear_reference(
    x: Tensor,
    W0: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    magnitude: Tensor,
    dropped_x: Tensor | None = None,
) -> Tensor:
    """Compute c (x W0ᵀ + s (drop(x) Aᵀ) Bᵀ) + b with c = m / ‖W0 + s B A‖.

    The norm, of each row, is a constant for the gradients.

    Args:
        x: Activations, (*, in).
        W0: Frozen weight, (out, in).
        bias: (out,) or None.
        A: Down-projection, (r, in).
        B: Up-projection, (out, r).
        scaling: Dimensionless factor s.
        magnitude: m, (out,).
        dropped_x: Input of the low-rank path after dropout, (*, in); None means x.

    Returns: (*, out).
    Source: Liu et al. 2024, arXiv:2402.09353, equation 5 and section 4.3; where dropout acts is
        decided in docs/adr/0011.
    """
    c = magnitude / (W0 + scaling * B @ A).norm(dim=1).detach()
    h = c * low_rank_linear_reference(x, W0, None, A, B, scaling, dropped_x)
    return h if bias is None else h + bias


def low_rank_gradients_reference(
    x: Tensor, W0: Tensor, A: Tensor, B: Tensor, scaling: float, grad_h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the closed-form gradients (dL/dx, dL/dA, dL/dB) of `low_rank_linear_reference`.

    With one column per token, h = W0 x + s B A x, so
    dL/dB = s (dL/dh) (A x)ᵀ, dL/dA = s Bᵀ (dL/dh) xᵀ, dL/dx = (W0 + s B A)ᵀ dL/dh.
    Here tokens are rows, hence the transposes.

    Args:
        x: (tokens, in).
        W0: (out, in).
        A: (r, in).
        B: (out, r).
        scaling: Dimensionless factor s.
        grad_h: dL/dh, (tokens, out).

    Returns: Gradients of shapes (tokens, in), (r, in) and (out, r).
    """
    grad_B = scaling * grad_h.T @ (x @ A.T)
    grad_A = scaling * (grad_h @ B).T @ x
    grad_x = grad_h @ (W0 + scaling * B @ A)
    return grad_x, grad_A, grad_B


def delta_weight_reference(A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Return s B A in float32 (float64 for float64 factors), (out, in)."""
    wide = torch.promote_types(A.dtype, torch.float32)
    return scaling * (B.to(wide) @ A.to(wide))
