"""Whether tensors hold numbers of use: finite ones, of a size that training comes to."""

from pathlib import Path

from torch import Tensor

LARGEST_WEIGHT = 1e10
"""Weights that are of use are below 1e3; from here on a product of two factors may overflow."""


def is_sound(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers alone, none of them beyond what training comes to."""
    if not tensor.is_floating_point():
        return True
    return bool((tensor.abs() < LARGEST_WEIGHT).all()) if tensor.numel() else True


def unsound_file(path: Path) -> bool:
    """Whether an adapter's file of tensors holds some that are of no use."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return any(not is_sound(file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
