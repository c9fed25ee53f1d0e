"""Loading with little more memory than the quantized model takes.

transformers and bitsandbytes load the model; two things they do cost memory, and are replaced
inside a `with` block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lorakit.layers.bitsandbytes_storage import BLOCK_SIZE

_CHUNK = 2**20
"""Values quantized at once; a multiple of every block size."""


@contextmanager
def low_memory() -> Iterator[None]:
    """Read weights without mapping files, and quantize them on a CPU piece by piece.

    The pages of a mapped file count as memory of the process while it is open, and transformers
    closes no file before the last weight is read. To quantize a weight on a CPU, bitsandbytes makes
    several float32 copies of it.
    """
    import bitsandbytes.functional as functional
    from transformers import modeling_utils

    loading: Any = modeling_utils
    safe_open, quantize_4bit = loading.safe_open, functional.quantize_4bit

    def reading(*args: Any, **kwargs: Any) -> Any:
        return safe_open(*args, **{**kwargs, "backend": "pread"})

    def quantizing(weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        in_pieces = weight.device.type == "cpu" and weight.numel() > _CHUNK and not args
        if in_pieces:
            return quantize_in_pieces(weight, **kwargs)
        return quantize_4bit(weight, *args, **kwargs)

    loading.safe_open, functional.quantize_4bit = reading, quantizing
    try:
        yield
    finally:
        loading.safe_open, functional.quantize_4bit = safe_open, quantize_4bit


def quantize_in_pieces(
    weight: Tensor,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_type: str = "fp4",
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, Any]:
    """Compute the same bits as bitsandbytes' `quantize_4bit`, in little memory.

    Args:
        weight: Any shape; its number of elements is a multiple of the block size.
        blocksize: Values that share a scale; None takes 64.
        compress_statistics: Whether the scales are quantized too.
        quant_type: "nf4" or "fp4".
        quant_storage: dtype of the packed codes.

    Returns: The packed codes and bitsandbytes' QuantState.
    """
    import bitsandbytes.functional as functional

    size = blocksize or BLOCK_SIZE
    packed, scales = [], []
    for piece in weight.reshape(-1).split(_CHUNK):
        codes, absmax = torch.ops.bitsandbytes.quantize_4bit(piece, size, quant_type, torch.uint8)
        packed.append(codes.view(-1))
        scales.append(absmax)
    whole = torch.cat(packed)
    codes = whole if quant_storage == torch.uint8 else whole.view(quant_storage)
    absmax = torch.cat(scales)
    offset = second = None
    if compress_statistics:
        offset = absmax.mean()
        absmax, second = functional.quantize_blockwise(absmax - offset, blocksize=256)
    state = functional.QuantState(
        absmax=absmax,
        shape=weight.shape,
        dtype=weight.dtype,
        blocksize=size,
        code=functional.get_4bit_type(quant_type, device=weight.device),
        quant_type=quant_type,
        offset=offset,
        state2=second,
    )
    return codes.unsqueeze(1), state
