"""The error that quantization causes in the weights of a model, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.errors import QuantizationError
from lorakit.injection.selection.heads import output_layers
from lorakit.layers.bitsandbytes_storage import BLOCK_SIZE, bits_of
from lorakit.quantization.devices import require_bitsandbytes
from lorakit.quantization.load import linear_layers


@dataclass(frozen=True)
class Scheme:
    """A format with fewer bits for a weight."""

    name: str
    bits: int
    quant_type: str = ""
    double_quant: bool = False


SCHEMES = (
    Scheme("nf4, double", 4, "nf4", True),
    Scheme("nf4", 4, "nf4"),
    Scheme("fp4, double", 4, "fp4", True),
    Scheme("fp4", 4, "fp4"),
    Scheme("int8", 8),
)


@dataclass(frozen=True)
class LayerError:
    """The error of one quantized weight.

    Attributes:
        path: The layer's path in the model.
        out_features: Rows of the weight.
        in_features: Columns.
        scheme: The format.
        relative: ‖W - dequantize(quantize(W))‖ / ‖W‖, Frobenius norms.
        largest: Largest absolute difference, in the weight's units.
        bits_per_parameter: Bytes of the codes and scales × 8 / parameters.
    """

    path: str
    out_features: int
    in_features: int
    scheme: str
    relative: float
    largest: float
    bits_per_parameter: float


def quantization_errors(
    model: nn.Module, schemes: Sequence[Scheme] = SCHEMES
) -> Iterator[LayerError]:
    """Measure each linear layer of a model under each scheme; the model is not changed.

    The output head is skipped, as it is not quantized; so are layers that a scheme cannot cut into
    blocks.

    Args:
        model: A model with dense weights.
        schemes: The formats to compare.

    Raises:
        QuantizationError: bitsandbytes is missing, or the model is quantized already.
    """
    require_bitsandbytes()
    quantized = next((path for path, module in model.named_modules() if bits_of(module)), None)
    if quantized is not None:
        raise QuantizationError(
            f"Cannot measure what quantizing {quantized} costs: it is quantized already, expected "
            "a dense weight. Name the checkpoint that it was made from."
        )
    outputs = output_layers(model)
    for path, module in linear_layers(model):
        if id(module) in outputs:
            continue
        weight: Tensor = module.weight.detach().float()  # type: ignore[operator,union-attr]  # a quantizable layer
        weight = weight.t().contiguous() if isinstance(module, Conv1D) else weight
        for scheme in schemes:
            if scheme.bits == 8 or weight.numel() % BLOCK_SIZE == 0:
                yield measure_weight(path, weight, scheme)


@torch.no_grad()
def measure_weight(path: str, weight: Tensor, scheme: Scheme) -> LayerError:
    """Quantize one weight, (out, in) float32, and compare it with itself."""
    back, stored = _there_and_back(weight, scheme)
    difference = weight - back
    norm = weight.norm().item()
    return LayerError(
        path=path,
        out_features=weight.shape[0],
        in_features=weight.shape[1],
        scheme=scheme.name,
        relative=difference.norm().item() / norm if norm else 0.0,
        largest=difference.abs().max().item(),
        bits_per_parameter=8 * sum(_own_bytes(t) for t in stored) / weight.numel(),
    )


def _there_and_back(weight: Tensor, scheme: Scheme) -> tuple[Tensor, list[Tensor]]:
    """Return the dequantized weight, and its stored tensors without code books."""
    import bitsandbytes.functional as functional

    if scheme.bits == 8:
        codes, absmax, _ = functional.int8_vectorwise_quant(weight.half())
        return codes.float() * (absmax / 127)[:, None], [codes, absmax]
    codes, state = functional.quantize_4bit(
        weight, compress_statistics=scheme.double_quant, quant_type=scheme.quant_type
    )
    second: Any = state.state2
    nested = [second.absmax] if scheme.double_quant else []
    return functional.dequantize_4bit(codes, state), [codes, state.absmax, *nested]


def _own_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
