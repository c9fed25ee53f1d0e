"""The dtype that the products of adapted layers run in: that of autocast, or of the operands."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import DtypeError
from lorakit.ops.quantized import QuantizedWeight, Weight


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype autocast runs products in, or None if it is off."""
    # Some devices, such as meta, have no autocast.
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def autocast_off(device_type: str) -> AbstractContextManager[Any]:
    """Return a context without autocast; it does nothing if autocast is off."""
    if autocast_dtype(device_type) is not None:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def compute_dtype_of(x: Tensor, weights: Sequence[Weight]) -> torch.dtype:
    """Return the dtype the products run in: autocast's, or that of x and the weights.

    Raises:
        DtypeError: x and a weight differ in dtype outside autocast.
    """
    autocast = autocast_dtype(x.device.type)
    if x.dtype != torch.float64 and autocast is not None:
        return autocast
    computed_in: list[torch.dtype] = []
    for weight in weights:
        if isinstance(weight, QuantizedWeight):
            # As in bitsandbytes, the input is cast to the weight's compute dtype.
            wanted = x.dtype if x.dtype == torch.float64 else weight.dtype or x.dtype
            computed_in.append(wanted)
        elif x.dtype != weight.dtype:
            raise DtypeError(
                f"The input of an adapted layer is {x.dtype} but its weight is {weight.dtype}, "
                "expected one dtype. Run the model under torch.autocast, or load the base in one "
                "dtype."
            )
    # If a layer is not quantized, x has its dtype.
    return computed_in[0] if len(computed_in) == len(weights) else x.dtype


def output_dtype_of(x: Tensor, compute_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the outputs: autocast's if that is on, else that of x."""
    is_cast = x.dtype != torch.float64 and autocast_dtype(x.device.type) is not None
    return compute_dtype if is_cast else x.dtype


def flatten_tokens(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return activations (*, features) as (tokens, features) in a dtype, or None for None."""
    return None if x is None else x.reshape(-1, x.shape[-1]).to(dtype)
