"""Checks of the tensors in an adapter's files: finite floating-point tensors by name."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from lorakit.errors import AdapterFileError, AdapterStateError, first_few, first_line
from lorakit.files.json_files import (
    POINTER_BYTES,
    has_control_characters,
    require_no_pointer,
    short_repr,
)
from lorakit.files.tensor_files import MOST_NAME_CHARACTERS

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.int64, torch.int32, torch.bool)
"""Dtypes of buffers of heads, such as the counter of a batch normalization."""

_TRAINED = ("lora_", "trainable_tokens")
_PARAMETERS = (".weight", ".bias")


_EXPECTED = "expected finite numbers in float16, bfloat16, float32 or float64"


def require_valid(tensors: Mapping[str, Tensor], where: str) -> None:
    """Reject tensors from a file that an adapter cannot have.

    Raises:
        AdapterFileError: Names the first few.
    """
    problems = first_few(_problems(tensors))
    if problems:
        raise AdapterFileError(
            f"Cannot use the tensors in {where}: {problems}; {_EXPECTED}. Save the adapter in one "
            "of these, or train it again with a lower learning rate."
        )


def require_savable(tensors: Mapping[str, Tensor], where: str) -> None:
    """Reject tensors that could not be read back.

    Raises:
        AdapterStateError: Names the first few.
    """
    problems = first_few(_problems(tensors))
    if problems:
        raise AdapterStateError(
            f"Cannot save the adapter to {where}: {problems}; {_EXPECTED}. Nothing was written. "
            "Train again with a lower learning rate, or cast the adapter."
        )


def _problems(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield a problem for each tensor that an adapter cannot have."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            if _is_parameter(name) or tensor.dtype not in _WHOLE:
                yield f"{short_repr(name)} is of {str(tensor.dtype).removeprefix('torch.')}"
        elif not math.isfinite(tensor.sum().item()):  # a finite sum has finite terms
            # If there is a NaN, it is both minimum and maximum.
            ends = torch.stack(tensor.aminmax())  # as a sum of finite numbers may be infinite
            if not ends.isfinite().all():
                what = "NaN" if ends.isnan().any() else "infinite values"
                yield f"{short_repr(name)} has {what}"


def _is_parameter(name: str) -> bool:
    return name.endswith(_PARAMETERS) or any(word in name for word in _TRAINED)


def load_pickle(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    """Return the tensors of a pickle.

    Raises:
        AdapterFileError: Pickles are not allowed, or the file is damaged or holds other objects.
    """
    if not allow_pickle:
        raise AdapterFileError(
            f"Cannot read {path}: it is a pickle, expected safetensors. If you trust its "
            "origin, allow it (allow_pickle=True, or --allow-pickle on the command line)."
        )
    try:
        with path.open("rb") as file:
            require_no_pointer(file.read(POINTER_BYTES))
        # weights_only creates tensors and plain containers, and runs no other code.
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors have no common class
        raise AdapterFileError(
            f"Cannot read {path}: {first_line(error)}; expected a pickle of tensors only. Get the "
            "adapter as safetensors."
        ) from None
    problem = _pickle_problem(values)
    if problem:
        raise AdapterFileError(
            f"Cannot read {path}: got {problem}, expected tensors by name. Get the adapter as "
            "safetensors."
        )
    return {name: tensor.detach() for name, tensor in values.items()}


def _pickle_problem(values: object) -> str | None:
    if not isinstance(values, dict):
        return f"a {type(values).__name__}"
    for name, tensor in cast(dict[object, object], values).items():
        if not isinstance(name, str):
            return f"a {type(name).__name__} as a name"
        if len(name) > MOST_NAME_CHARACTERS:
            return f"a name of {len(name):,} characters"
        if has_control_characters(name):
            return f"control characters in the name {short_repr(name)}"
        if not isinstance(tensor, Tensor):
            return f"a {type(tensor).__name__} at {short_repr(name)}"
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            return f"a tensor that is sparse, quantized or without data at {short_repr(name)}"
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            return f"a tensor that repeats its memory at {short_repr(name)}"
    return None
