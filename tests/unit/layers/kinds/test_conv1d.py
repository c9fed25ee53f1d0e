"""transformers' Conv1D, whose weight is stored (in, out)."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.layers import LoraConv1D, LowRankUpdate
from tolerances import TOLERANCE, largest_error


def test_factors_are_those_of_the_transposed_weight():
    layer = Conv1D(4, 6)
    nn.init.normal_(layer.weight)
    assert LoraConv1D.factor_sizes(layer) == (6, 4)
    LoraConv1D.adapt_in_place(layer)
    assert layer.base_weight().shape == (4, 6)
    assert layer.oriented(torch.zeros(4, 6)).shape == (6, 4)
    layer.updates["a"] = update = LowRankUpdate(torch.randn(2, 6), torch.randn(4, 2), 0.5)
    layer.activate(("a",))
    x = torch.randn(3, 6)
    expected = x @ (layer.weight + update.delta_weight().t()) + layer.bias
    assert largest_error(layer(x=x), expected) <= TOLERANCE[torch.float32]
