"""The cross-entropy of `cross_entropy.py` in C: tensors in, addresses out."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorakit.ops.native.compiled_library import library
from lorakit.ops.native.cpu_kernels import Matrix, address, empty_float32, matrix

_OUT_OF_BOUNDS = 2


class CrossEntropyKernel:
    """The function of native/cross_entropy.c on tensors."""

    def __init__(self, compiled: ctypes.CDLL):
        self._function = compiled.lorakit_cross_entropy
        addresses = (ctypes.c_void_p,) * 3
        self._function.argtypes = (ctypes.POINTER(Matrix), *addresses, ctypes.c_int)
        self._function.restype = ctypes.c_int

    def __call__(self, logits: Tensor, targets: Tensor, *, replaces: bool) -> Tensor:
        """Return the loss of each token, (tokens,) in float32.

        Args:
            logits: (tokens, vocabulary), float32 or bfloat16, with adjacent columns.
            targets: (tokens,), integers.
            replaces: Whether to write the gradient of their sum over the logits.

        Raises:
            ValueError: There are more or fewer targets than rows of logits.
            IndexError: A target is not in the vocabulary.
            MemoryError: There is no room for a row of logits in float32.
        """
        if targets.shape != logits.shape[:1]:
            raise ValueError(
                f"The targets do not fit the logits: got shapes {tuple(targets.shape)} and "
                f"{tuple(logits.shape)}, expected a target for each row."
            )
        sums, rest = empty_float32(len(targets)), empty_float32(len(targets))
        compact, large = targets.to(torch.int64).contiguous(), matrix(logits)
        if large.data:
            addresses = (address(each) for each in (compact, sums, rest))
            failure = self._function(large, *addresses, replaces)
            if failure == _OUT_OF_BOUNDS:
                outside = targets[(targets < 0) | (targets >= logits.shape[1])]
                raise IndexError(f"Target {int(outside[0])} is out of bounds.")
            if failure:
                raise MemoryError("The cross-entropy could not allocate a row of logits.")
        return torch.log(sums, out=sums).add_(rest)


@cache
def load() -> CrossEntropyKernel | None:
    """Return the compiled function, or None if it is unavailable."""
    found = library()
    return None if found is None else CrossEntropyKernel(found)
