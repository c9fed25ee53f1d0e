"""A quantized model without values: the layers and storages that quantization would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.config import QuantizationConfig
from lorakit.layers.bitsandbytes_storage import BLOCK_SIZE
from lorakit.quantization.devices import require_bitsandbytes
from lorakit.quantization.load import (
    bitsandbytes_config,
    linear_layers,
    require_blocks,
    skipped_modules,
)

_NESTED_BLOCK_SIZE = 256
_CODES = 16
_NESTED_CODES = 256


def quantize_skeleton(
    model: nn.Module,
    config: QuantizationConfig,
    dtype: torch.dtype,
    device: torch.device,
    trained_in_full: Sequence[str],
    entered: Callable[[], AbstractContextManager[None]],
) -> None:
    """Replace the linear layers of a model on fake tensors by quantized ones, in place.

    Args:
        model: A model on fake tensors.
        config: How to quantize.
        dtype: dtype of products with the quantized layers.
        device: Device of the quantized layers.
        trained_in_full: Names of modules that stay dense, as an adapter trains them.
        entered: Returns a context in which tensors are fake; the caller has not entered it.

    Raises:
        QuantizationError, TargetError: As `load_quantized` would raise.
    """
    require_bitsandbytes()
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    skipped = skipped_modules(model, config, trained_in_full)
    require_blocks(model, config, skipped)
    how = bitsandbytes_config(config, dtype, skipped)
    plain = dict(linear_layers(model))
    replace_with_bnb_linear(model, how.llm_int8_skip_modules, how)
    with entered():
        book = torch.empty(_CODES, device=device)
        for path, source in plain.items():
            made: Any = model.get_submodule(path)
            if made is source:
                continue
            weight: Any = source.weight
            shape = weight.shape[::-1] if isinstance(source, Conv1D) else weight.shape
            empty = _eight_bits if config.bits == 8 else _four_bits
            made.weight = empty(shape, dtype, config, device, book)
            made.bias = source.bias
            made.train(source.training)


def _four_bits(
    shape: Any,
    dtype: torch.dtype,
    config: QuantizationConfig,
    device: torch.device,
    book: Tensor,
) -> nn.Parameter:
    from bitsandbytes.functional import QuantState

    numbers = shape.numel()
    blocks = -(-numbers // BLOCK_SIZE)
    nested = None
    offset = None
    if config.double_quant:
        nested = QuantState(
            absmax=torch.empty(-(-blocks // _NESTED_BLOCK_SIZE), device=device),
            blocksize=_NESTED_BLOCK_SIZE,
            code=torch.empty(_NESTED_CODES, device=device),
            dtype=torch.float32,
        )
        offset = torch.empty((), device=device)
    kind = torch.uint8 if config.double_quant else torch.float32
    packed: Any = nn.Parameter(
        torch.empty((numbers + 1) // 2, 1, dtype=torch.uint8, device=device), requires_grad=False
    )
    packed.quant_state = QuantState(
        absmax=torch.empty(blocks, dtype=kind, device=device),
        shape=shape,
        code=book,
        blocksize=BLOCK_SIZE,
        quant_type=config.quant_type,
        dtype=dtype,
        offset=offset,
        state2=nested,
    )
    return packed


def _eight_bits(
    shape: Any,
    dtype: torch.dtype,
    config: QuantizationConfig,
    device: torch.device,
    book: Tensor,
) -> nn.Parameter:
    codes: Any = nn.Parameter(
        torch.empty(shape, dtype=torch.int8, device=device), requires_grad=False
    )
    codes.SCB = torch.empty(shape[0], device=device)
    return codes
