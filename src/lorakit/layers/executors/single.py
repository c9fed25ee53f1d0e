"""Executors of one layer: the base alone, or with the updates that act on all rows."""

import torch
from torch import Tensor
from torch.compiler import is_compiling

from lorakit.layers.described import DescribedLayer
from lorakit.layers.executors.prepared import PreparedUpdates


def run_base(layer: DescribedLayer, x: Tensor) -> Tensor:
    """Return the output of the base alone."""
    return layer.base_output(x)


def run_single(layer: DescribedLayer, x: Tensor) -> Tensor:
    """Return the output with the layer's acting updates, of which there is at least one."""
    # A compiled graph must not depend on what is prepared.
    if layer.is_matrix_product and not torch.is_grad_enabled() and not is_compiling():
        if layer.prepared is None:
            layer.prepared = PreparedUpdates()
        output = layer.prepared.output(layer, x)
        if output is not None:
            return output
    return layer.compute(x, layer.operands(layer.acting_updates()))
