"""Layers without an update whose products run in the quicker library: see `weight_products.py`."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.layers.class_swap import swap_class
from lorakit.layers.hooks import has_foreign_forward
from lorakit.ops.weight_products import frozen_linear, onednn_is_quicker


class FrozenLinear(nn.Linear):
    """torch.nn.Linear; while it is trained it runs as one."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (*, in) to (*, out)."""
        return frozen_linear(input, self.weight, self.bias)


class FrozenConv1D(Conv1D):
    """GPT-2's transposed linear layer; while it is trained it runs as one."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, in) to (*, out)."""
        return frozen_linear(x, self.weight.t(), self.bias)


_FROZEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FrozenLinear,
    Conv1D: FrozenConv1D,
}
PLAIN_CLASSES = {frozen: plain for plain, frozen in _FROZEN.items()}
"""The class that a layer had before, by the one of this file."""


def speed_up_frozen_layers_(model: Any) -> None:
    """Give a base's linear layers the class that takes the quicker library, where there is one.

    Adding an adapter swaps the class again, as it does that of any linear layer. The output layer
    keeps its class: its loss has its own way.
    """
    if not onednn_is_quicker():
        return
    output = getattr(model, "get_output_embeddings", lambda: None)()
    for module in model.modules():
        new_class = _FROZEN.get(type(module))
        if new_class is None or module is output or has_foreign_forward(module):
            continue
        if module.weight.dtype == torch.float32:
            swap_class(module, new_class)


def restore_plain_layers_(model: nn.Module) -> None:
    """Give all linear layers the class of their library back."""
    for module in model.modules():
        if type(module) in PLAIN_CLASSES:
            swap_class(module, PLAIN_CLASSES[type(module)])
