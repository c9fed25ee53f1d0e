"""Executors of one layer: the base alone, or with the updates that act on all rows."""

from torch import Tensor

from lorakit.layers.described import DescribedLayer


def run_base(layer: DescribedLayer, x: Tensor) -> Tensor:
    """Return the output of the base alone."""
    return layer.base_output(x)


def run_single(layer: DescribedLayer, x: Tensor) -> Tensor:
    """Return the output with the layer's acting updates, of which there is at least one."""
    return layer.compute(x, layer.operands(layer.acting_updates()))
