"""Updates of convolutions, which are matrices in lorakit and kernels in PEFT's files.

A file has lora_A (r, in, *kernel) and lora_B (out, r / groups, 1, …).
"""

from collections.abc import Mapping

from torch import Tensor

from lorakit.errors import AdapterFileError
from lorakit.layers.described import KernelShape
from lorakit.layers.updates.sliced_update import in_blocks, out_of_blocks

Convolutions = Mapping[str, KernelShape]


def to_kernels(A: Tensor, B: Tensor, shape: KernelShape) -> tuple[Tensor, Tensor]:
    """Return the factors of a convolution in the files' layout; views if it has no groups.

    Args:
        A: (r, in k).
        B: (out, r), in blocks if there are groups.
        shape: Channels, kernel and groups.

    Raises:
        AdapterFileError: There are groups, and lora_B is not zero outside its blocks.
    """
    compact = out_of_blocks(B, (True,) * shape.groups) if shape.groups > 1 else B
    ones = (1,) * len(shape.kernel)
    if compact is None:
        raise AdapterFileError(
            f"Cannot write a convolution in {shape.groups} groups: its lora_B {tuple(B.shape)} is "
            "not zero outside one block per group, expected each group to use only its slice of "
            "the rank. Create it with a layer of that kind (Adapter.from_model)."
        )
    return A.reshape(-1, shape.channels, *shape.kernel), compact.view(*compact.shape, *ones)


def to_matrices(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, KernelShape | None]:
    """Return factors as matrices, and the shape of the kernel if they are a convolution's.

    Args:
        A: (r, in), or (r, in, *kernel).
        B: (out, r), or (out, r / groups, 1, …).

    Returns: A (r, in k), B (out, r) and the kernel; the arguments and None if they are not a
        convolution's, so that callers can reject any other shape.
    """
    if A.ndim not in (3, 4, 5) or B.shape[2:] != (1,) * (A.ndim - 2):
        return A, B, None
    groups = A.shape[0] // B.shape[1] if B.shape[1] else 0
    if groups * B.shape[1] != A.shape[0] or not groups or B.shape[0] % groups:
        return A, B, None
    shape = KernelShape(A.shape[1], tuple(A.shape[2:]), groups)
    compact = B.flatten(1)
    return A.flatten(1), in_blocks(compact, (True,) * groups) if groups > 1 else compact, shape
