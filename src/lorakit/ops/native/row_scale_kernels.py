"""The products of `skinny.py` with scaled rows of the weight, in C: tensors in, addresses out."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorakit.ops.native.compiled_library import library
from lorakit.ops.native.cpu_kernels import (
    Group,
    Matrix,
    address,
    backward_groups,
    empty_float32,
    matrix,
    zeros_float32,
)

_NO_BUFFERS = "The products with scaled rows could not allocate their small buffers."


class _RowScale(ctypes.Structure):
    _fields_ = (("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("h", Matrix))


class _RowScaleBackward(ctypes.Structure):
    _fields_ = (
        ("scale", ctypes.c_void_p),
        ("dots", ctypes.c_void_p),
        ("v", Matrix),
        ("out", Matrix),
    )


class RowScaleKernels:
    """Functions of native/skinny.c, up_backward.c and row_norms.c on tensors.

    Large activations and weights are 2-dimensional, float32 or bfloat16, with adjacent columns.
    Scales and biases are float32 and contiguous. Without u and B, v has the low-rank term already.
    """

    def __init__(self, compiled: ctypes.CDLL):
        self._up = compiled.lorakit_up_scaled
        self._backward = compiled.lorakit_up_scaled_backward
        self._norms = compiled.lorakit_squared_row_norms
        large, group = ctypes.POINTER(Matrix), ctypes.c_void_p
        u = (ctypes.c_void_p, ctypes.c_long)
        self._up.argtypes = (large, group, *u, ctypes.POINTER(_RowScale))
        self._backward.argtypes = (large, group, *u, *u, ctypes.POINTER(_RowScaleBackward))
        thin = ctypes.c_void_p
        self._norms.argtypes = (large, thin, thin, ctypes.c_int, ctypes.c_float, thin)
        for function in (self._up, self._backward, self._norms):
            function.restype = ctypes.c_int

    def up_(
        self,
        v: Tensor,
        u: Tensor | None,
        B: Tensor | None,
        scaling: float,
        scale: Tensor,
        bias: Tensor | None,
        h: Tensor,
    ) -> None:
        """Add s u Bᵀ to v in place and write scale v + bias into h, which may be v.

        Args:
            v: (tokens, out).
            u: (tokens, r) in float32; its rows may be strided.
            B: (out, r).
            scaling: s.
            scale: (out,).
            bias: (out,) or None.
            h: (tokens, out).
        """
        groups = backward_groups([_group(v, B, scaling)])
        of_rows = _RowScale(address(scale), None if bias is None else address(bias), matrix(h))
        large = matrix(v)
        if large.data and self._up(large, groups.address, *_rows(u), of_rows):
            raise MemoryError(_NO_BUFFERS)

    def up_backward(
        self,
        g: Tensor,
        v: Tensor | None,
        scale: Tensor,
        out: Tensor,
        u: Tensor | None,
        B: Tensor | None,
        scaling: float,
        grad_u: Tensor | None,
        needs_B: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Write scale g into `out`, which may be g, and s out B into grad_u.

        Args:
            g: (tokens, out).
            v: (tokens, out); None if the first result is not needed.
            scale: (out,).
            out: (tokens, out).
            u: (tokens, r) in float32; its rows may be strided, as those of grad_u.
            B: (out, r).
            scaling: s.
            grad_u: (tokens, r) in float32.
            needs_B: Whether the second result is needed.

        Returns: Σ g v over the tokens, (out,), and s outᵀ u, (out, r), where they are needed.
        """
        dots = None if v is None else zeros_float32(scale.shape)
        grad_B = zeros_float32(B.shape) if needs_B and B is not None else None
        groups = backward_groups([_group(g, B, scaling)._replace(gradient=grad_B)])
        of_rows = _RowScaleBackward(
            address(scale),
            None if dots is None else address(dots),
            matrix(g if v is None else v),
            matrix(out),
        )
        large = matrix(g)
        if large.data and self._backward(large, groups.address, *_rows(u), *_rows(grad_u), of_rows):
            raise MemoryError(_NO_BUFFERS)
        return dots, grad_B

    def row_norms(self, W0: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        """Return ‖W0_i + s B_i A‖, (out,) in float32, never zero.

        Args:
            W0: (out, in).
            A: (r, in).
            B: (out, r).
            scaling: s.
        """
        norms = empty_float32(W0.shape[0])
        wide_A, wide_B = (each.detach().to(torch.float32).contiguous() for each in (A, B))
        thin = (address(wide_A), address(wide_B), A.shape[0], scaling)
        large = matrix(W0)
        if large.data and self._norms(large, *thin, address(norms)):
            raise MemoryError(_NO_BUFFERS)
        return norms.sqrt_()


def _group(x: Tensor, B: Tensor | None, scaling: float) -> Group:
    """Return a group of all rows of an activation; of rank 0 without B."""
    if B is None:
        return Group(0, x.shape[0], empty_float32(0), 0)
    return Group(0, x.shape[0], B, B.shape[1], scaling)


def _rows(u: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if u is None else (address(u), u.stride(0))


@cache
def load() -> RowScaleKernels | None:
    """Return the compiled functions, or None if they are unavailable."""
    found = library()
    return None if found is None else RowScaleKernels(found)
