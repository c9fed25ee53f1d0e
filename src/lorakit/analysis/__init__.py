"""Pictures and figures about adapters and bases."""

from lorakit.analysis.quantization_plot import plot_quantization_errors

__all__ = ["plot_quantization_errors"]
