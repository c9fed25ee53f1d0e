"""Checks that weights are finite and of a size that training produces."""

from pathlib import Path

from torch import Tensor

from lorakit.files.tensor_files import read_safetensors

LARGEST_WEIGHT = 1e10
"""Usable weights are below 1e3; from here on a product of two factors may overflow."""


def has_usable_numbers(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are below `LARGEST_WEIGHT`; NaN is not."""
    if not tensor.is_floating_point():
        return True
    return bool((tensor.abs() < LARGEST_WEIGHT).all()) if tensor.numel() else True


def has_unusable_numbers(path: Path) -> bool:
    """Return whether a safetensors file holds a tensor with unusable numbers."""
    return not all(map(has_usable_numbers, read_safetensors(path).tensors.values()))
