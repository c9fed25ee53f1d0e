"""What `quantized.py` computes in C: tensors in, addresses and sizes out to the library."""

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


class Stored(NamedTuple):
    """A weight as it is stored; every tensor is contiguous and on the CPU."""

    codes: Tensor
    """(out, in), int8; or two codes of 4 bits in each byte."""
    absmax: Tensor
    """float32, or uint8 if it is quantized too."""
    code_book: Tensor | None
    """The values of the 16 codes in float32; None for int8."""
    nested_absmax: Tensor | None
    """float32, like the rest."""
    nested_code: Tensor | None
    offset: Tensor | None
    shape: tuple[int, int]
    """(out, in)."""
    block_size: int
    """Values that share a scale; `in` for int8."""
    nested_block_size: int
    """Scales that share a second-level scale."""

    def describe(self) -> _Quantized:
        """Return what the C reads; it is valid as long as the tensors live."""
        *tensors, shape, block_size, nested_block_size = self
        addresses = [None if tensor is None else address(tensor) for tensor in tensors]
        return _Quantized(*addresses, *shape, block_size, nested_block_size)


class QuantizedKernels:
    """The functions of native/quantized.c and native/dequantize.c on tensors."""

    def __init__(self, compiled: ctypes.CDLL):
        self._linear, self._dequantize = (
            compiled.lorakit_quantized_linear,
            compiled.lorakit_dequantize,
        )
        large, weight = ctypes.POINTER(Matrix), ctypes.POINTER(_Quantized)
        self._linear.argtypes = (large, weight, ctypes.c_void_p, large)
        self._dequantize.argtypes = (weight, large)
        self._linear.restype = self._dequantize.restype = ctypes.c_int

    def linear(self, x: Tensor, weight: Stored, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b.

        Args:
            x: (tokens, in), float32 or bfloat16, with adjacent columns.
            weight: W as it is stored.
            bias: (out,), contiguous, dtype of x; or None.

        Returns: (tokens, out), dtype of x.
        """
        y = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device="cpu")
        add = None if bias is None else address(bias)
        if self._linear(matrix(x), weight.describe(), add, matrix(y)):
            raise MemoryError("The product with a quantized weight could not allocate its buffers.")
        return y

    def dequantize(self, weight: Stored, out: Tensor) -> Tensor:
        """Write W into `out` and return it.

        Args:
            weight: W as it is stored.
            out: (out, in), float32 or bfloat16, with adjacent columns.
        """
        if self._dequantize(weight.describe(), matrix(out)):
            raise MemoryError("Dequantizing a weight could not allocate its buffers.")
        return out


@cache
def load() -> QuantizedKernels | None:
    """Return the compiled functions, or None if they are unavailable."""
    found = library()
    return None if found is None else QuantizedKernels(found)
