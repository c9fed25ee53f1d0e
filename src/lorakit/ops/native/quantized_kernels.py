"""The product of `quantized.py` in C: tensors in, addresses and sizes out to the library."""

import ctypes
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lorakit.ops.native.compiled_library import library
from lorakit.ops.native.cpu_kernels import Matrix, address, matrix

WIDEST_GROUP = 32
"""Values that the C decodes at once; a block and a row consist of whole groups."""


class _Quantized(ctypes.Structure):
    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("absmax", ctypes.c_void_p),
        ("code_book", ctypes.c_void_p),
        ("nested_absmax", ctypes.c_void_p),
        ("nested_code", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("rows", ctypes.c_long),
        ("columns", ctypes.c_long),
        ("block_size", ctypes.c_long),
        ("nested_block_size", ctypes.c_long),
    )


class Codes(NamedTuple):
    """A weight as it is stored; every tensor is contiguous and on the CPU."""

    codes: Tensor
    """(out, in), int8; or two codes of 4 bits in each byte."""
    absmax: Tensor
    """float32, or uint8 if it is quantised too."""
    code_book: Tensor | None
    """The values of the 16 codes in float32; None for int8."""
    nested_absmax: Tensor | None
    """float32, like the rest."""
    nested_code: Tensor | None
    offset: Tensor | None


class QuantizedKernels:
    """The functions of native/quantized.c on tensors."""

    def __init__(self, compiled: ctypes.CDLL):
        self._linear = compiled.lorakit_quantized_linear
        large, weight = ctypes.POINTER(Matrix), ctypes.POINTER(_Quantized)
        self._linear.argtypes = (large, weight, ctypes.c_void_p, large)
        self._linear.restype = ctypes.c_int

    def linear(
        self,
        x: Tensor,
        weight: Codes,
        shape: tuple[int, int],
        block_size: int,
        nested_block_size: int,
        bias: Tensor | None,
    ) -> Tensor:
        """Return x Wᵀ + b.

        Args:
            x: (tokens, in), float32 or bfloat16, with adjacent columns.
            weight: W as it is stored.
            shape: (out, in).
            block_size: Values that share a scale; `in` for int8.
            nested_block_size: Scales that share a second-level scale.
            bias: (out,), contiguous, dtype of x; or None.

        Returns: (tokens, out), dtype of x.
        """
        addresses = [None if tensor is None else address(tensor) for tensor in weight]
        stored = _Quantized(*addresses, *shape, block_size, nested_block_size)
        y = torch.empty(x.shape[0], shape[0], dtype=x.dtype, device="cpu")
        if self._linear(matrix(x), stored, None if bias is None else address(bias), matrix(y)):
            raise MemoryError("The product with a quantised weight could not allocate its buffers.")
        return y


@cache
def load() -> QuantizedKernels | None:
    """Return the compiled product, or None if it is unavailable."""
    found = library()
    return None if found is None else QuantizedKernels(found)
