"""`h += s x Aᵀ Bᵀ` for activations of one size, described once to the compiled library.

When a step of decoding comes to a layer, the weights in between have driven Python's instructions
and objects out of the processor's caches: describing the product takes longer than computing it.
So a call gives two addresses, and nothing else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from lorakit.ops.native.cpu_kernels import NO_BUFFERS, CpuKernels, Group, Groups, Matrix


class _Addition(ctypes.Structure):
    _fields_ = (
        ("x", Matrix),
        ("h", Matrix),
        ("of_A", ctypes.c_void_p),
        ("of_B", ctypes.c_void_p),
        ("groups", ctypes.c_int),
    )


class PreparedAdd:
    """`CpuKernels.add_groups_` for contiguous activations of one size and dtype."""

    def __init__(
        self,
        kernels: CpuKernels,
        dtype: torch.dtype,
        sizes: tuple[int, int, int],
        down: Groups,
        up: Groups,
    ):
        """Describe it.

        Args:
            kernels: The compiled products.
            dtype: dtype of x and h.
            sizes: Tokens, columns of x and columns of h.
            down: Groups of A.
            up: Groups of B, of the same rows.
        """
        tokens, inside, outside = sizes
        is_half = dtype == torch.bfloat16
        self._kept = _Addition(
            Matrix(0, is_half, inside, tokens, inside),
            Matrix(0, is_half, outside, tokens, outside),
            *(down.address, up.address, up.count),
        )
        self._groups = down, up
        self._address = ctypes.addressof(self._kept)
        self._function: Callable[[int, int, int], int] = kernels.add_prepared

    def add_(self, h: Tensor, x: Tensor) -> None:
        """Add s x Aᵀ Bᵀ of each group to h in place; h and x are as described."""
        if self._function(self._address, x.data_ptr(), h.data_ptr()):
            raise MemoryError(NO_BUFFERS)


class PreparedTerm:
    """One term that acts on all rows, for any number of them, as long as its factors stay."""

    def __init__(
        self, kernels: CpuKernels, A: Tensor, B: Tensor, scaling: float, dtype: torch.dtype
    ):
        self._kernels, self._dtype = kernels, dtype
        self._factors, self._scaling = (A, B), scaling
        self._addresses = A.data_ptr(), B.data_ptr()
        self._adds: dict[int, PreparedAdd] = {}

    def add_(self, h: Tensor, x: Tensor, tokens: int, A: Tensor, B: Tensor) -> bool:
        """Add s x Aᵀ Bᵀ to h in place.

        Args:
            h: (tokens, out), contiguous.
            x: (tokens, in), contiguous.
            tokens: Their number.
            A: The term's factor.
            B: The term's factor.

        Returns: False, and nothing is added, if A or B is not where it was.
        """
        if (A.data_ptr(), B.data_ptr()) != self._addresses:
            return False
        add = self._adds.get(tokens)
        if add is None:
            down = Groups([Group(0, tokens, A, A.shape[0])])
            up = Groups([Group(0, tokens, B, B.shape[1], self._scaling)])
            sizes = (tokens, A.shape[1], B.shape[0])
            add = self._adds[tokens] = PreparedAdd(self._kernels, self._dtype, sizes, down, up)
        add.add_(h, x)
        return True
