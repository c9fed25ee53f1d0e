"""The base in 4 or 8 bits: loading it, preparing it for training, and measuring the error."""

from lorakit.quantization.load import load_quantized, quantize_model
from lorakit.quantization.prepare import prepare_for_training

__all__ = ["load_quantized", "prepare_for_training", "quantize_model"]
