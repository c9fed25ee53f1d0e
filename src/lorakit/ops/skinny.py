"""The four products of the low-rank path, each of which streams one large activation once.

With tokens as rows, u = drop(x) Aᵀ is added to h as s u Bᵀ, and g = dL/dh comes back:

    down             u = drop(x) Aᵀ                                reads x
    up_              h += s u Bᵀ                                   reads and writes h
    up_backward      dL/du = s g B and dL/dB = s gᵀ u              reads g
    down_backward_   dL/dA = (dL/du)ᵀ drop(x) and
                     dL/dx += drop'(dL/du A)                       reads x, reads and writes dL/dx

All are limited by memory traffic, not by arithmetic, so nothing large may be read twice or written
in between, above all no dropped copy of x. On a CPU they run in C
(native/skinny.c, see `cpu_kernels.py`), on a GPU those that drop in Triton (`triton_kernels.py`);
the others, those under torch.compile or in other dtypes, and all if neither is available, are torch
operations. So are products of larger ranks: a matrix library is then faster than the C, which keeps
sums of eight ranks in registers, by more than a second pass over x for dropout costs.
`row_scale.py` has those that also scale h.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lorakit.ops.dropout import apply_keep_mask, kernels_for
from lorakit.ops.dropout_mask import kernel_mask
from lorakit.ops.native.cpu_kernels import CpuKernels
from lorakit.ops.native.prepared_add import PreparedTerm
from lorakit.ops.operands import LowRankTerm

_WIDEST = {
    **{"down": 8, "down dropped": 16, "up": 8, "up_backward": 12},
    **{"down_backward": 8, "down_backward dropped": 24},
}
"""Largest rank, summed over layers that share an input, at which the C is faster.
Measured by `python -m benchmarks.thin_products`, see docs/performance.md."""


def _kernels(x: Tensor, product: str, width: int, drops: bool = False) -> Any:
    """Return the compiled products if they are faster here, or None."""
    kernels = kernels_for(x, drops=drops)
    if isinstance(kernels, CpuKernels) and width > _WIDEST[product + " dropped" * drops]:
        return kernels if x.dtype == torch.bfloat16 and not _multiplies_bfloat16() else None
    return kernels


def runs_in_c(x: Tensor, product: str, r: int) -> bool:
    """Return whether a product of a rank is computed in C: "up" or "up_backward"."""
    return isinstance(_kernels(x, product, r), CpuKernels)


@cache
def _multiplies_bfloat16() -> bool:
    """Whether torch's products of bfloat16 matrices are fast on this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def down(x: Tensor, A: Tensor, drop_probability: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """Return u = drop(x) Aᵀ.

    Args:
        x: Activations, (tokens, in).
        A: Down-projections, (r, in), several layers' stacked; any floating dtype.
        drop_probability: In [0, 1).
        seed: The mask's seed; None if nothing is dropped.

    Returns: (tokens, r), float32 from a kernel, else the dtype of x.
    """
    kernels = _kernels(x, "down", A.shape[0], drops=seed is not None)
    if kernels is not None:
        return kernels.down(x, A, kernel_mask(drop_probability, seed))
    return drop_elements(x, drop_probability, seed) @ A.to(x.dtype).t()


def up_(h: Tensor, u: Tensor, B: Tensor, scaling: float) -> None:
    """Add s u Bᵀ to h in place.

    Args:
        h: (tokens, out).
        u: (tokens, r); its rows may be strided.
        B: Up-projection, (out, r); any floating dtype.
        scaling: Dimensionless factor s.
    """
    kernels = _kernels(h, "up", B.shape[1])
    if kernels is not None and u.dtype == torch.float32:
        kernels.up_(h, u, B, scaling)
        return
    h.addmm_(u.to(h.dtype), B.to(h.dtype).t(), alpha=scaling)


def add_(
    h: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    drop_probability: float = 0.0,
    seed: Tensor | None = None,
) -> None:
    """Add s drop(x) Aᵀ Bᵀ to h in place, if u is not needed for gradients.

    Args:
        h: (tokens, out).
        x: (tokens, in).
        A: (r, in).
        B: (out, r).
        scaling: s.
        drop_probability: As in `down`.
        seed: As in `down`.
    """
    kernels = _kernels(x, "down", A.shape[0])
    if isinstance(kernels, CpuKernels):
        kernels.add_(h, x, A, B, scaling, kernel_mask(drop_probability, seed))
    else:
        up_(h, down(x, A, drop_probability, seed), B, scaling)


def prepare_add(x: Tensor, term: LowRankTerm) -> PreparedTerm | None:
    """Return `add_` prepared for a term that drops nothing, or None if no kernel computes it.

    Args:
        x: A tensor of the activations' dtype and device.
        term: The term; its factors must stay where they are.
    """
    kernels = _kernels(x, "down", term.A.shape[0])
    if not isinstance(kernels, CpuKernels):
        return None
    return PreparedTerm(kernels, term.A, term.B, term.scaling, x.dtype)


def up_backward(
    g: Tensor, u: Tensor, B: Tensor, scaling: float, grad_u: Tensor, needs_B: bool
) -> Tensor | None:
    """Write dL/du = s g B into `grad_u` and return dL/dB = s gᵀ u.

    Args:
        g: dL/dh, (tokens, out).
        u: What `down` returned, (tokens, r).
        B: (out, r).
        scaling: s.
        grad_u: Output for dL/du, (tokens, r), dtype of u; its rows may be strided.
        needs_B: Whether dL/dB is needed.

    Returns: (out, r), or None if it is not needed.
    """
    kernels = _kernels(g, "up_backward", B.shape[1])
    if kernels is not None and u.dtype == torch.float32:
        return kernels.up_backward(g, u, B, scaling, grad_u, needs_B)
    # As uᵀ g instead of gᵀ u, and with Bᵀ contiguous: matrix libraries are several times slower
    # on the other orientation of the thin operand.
    grad_u.copy_((g @ B.to(g.dtype).t().contiguous().t()).mul_(scaling))
    return (u.to(g.dtype).t() @ g).mul_(scaling).t() if needs_B else None


def down_backward_(
    x: Tensor,
    A: Tensor,
    grad_u: Tensor,
    drop_probability: float,
    seed: Tensor | None,
    grad_x: Tensor | None,
    needs_A: bool,
) -> Tensor | None:
    """Add drop'(dL/du A) to `grad_x` in place and return dL/dA = (dL/du)ᵀ drop(x).

    Args:
        x: What `down` read, (tokens, in).
        A: (r, in).
        grad_u: dL/du, (tokens, r).
        drop_probability: As in `down`.
        seed: As in `down`.
        grad_x: The sum of dL/dx so far, (tokens, in); None if it is not needed.
        needs_A: Whether dL/dA is needed.

    Returns: (r, in), or None if it is not needed.
    """
    kernels = _kernels(x, "down_backward", A.shape[0], drops=seed is not None)
    if kernels is not None and grad_u.dtype == torch.float32:
        mask = kernel_mask(drop_probability, seed)
        return kernels.down_backward_(x, A, grad_u, mask, grad_x, needs_A)
    thin = grad_u.to(x.dtype)
    if grad_x is not None and seed is None:
        grad_x.addmm_(thin, A.to(x.dtype))
    elif grad_x is not None:
        grad_x.add_(drop_elements(thin @ A.to(x.dtype), drop_probability, seed))
    return thin.t() @ drop_elements(x, drop_probability, seed) if needs_A else None


def drop_elements(x: Tensor, drop_probability: float, seed: Tensor | None) -> Tensor:
    """Return drop(x), or x itself if nothing is dropped."""
    return x if seed is None else apply_keep_mask(x, drop_probability, seed)
