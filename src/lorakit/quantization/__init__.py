"""The base in 4 or 8 bits: loading it so, preparing it for training, and what it costs."""

from lorakit.quantization.load import load_quantized, quantize_model
from lorakit.quantization.prepare import prepare_for_training

__all__ = ["load_quantized", "prepare_for_training", "quantize_model"]
