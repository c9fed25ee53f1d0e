"""One layer, without updates and with those that act."""

import torch
from torch import nn

from lorakit.layers import LoraLinear, LowRankUpdate
from lorakit.layers.executors.single import run_base, run_single
from tolerances import TOLERANCE, largest_error


def test_the_base_alone_and_with_its_updates():
    layer = LoraLinear.adapt_in_place(nn.Linear(6, 4))
    x, expected = torch.randn(2, 3, 6), layer.bias.detach().clone()
    for name in "ab":
        layer.updates[name] = LowRankUpdate(torch.randn(2, 6), torch.randn(4, 2), 0.5)
    layer.activate(("a", "b"))
    deltas = [update.delta_weight() for update in layer.updates.values()]
    expected = x @ (layer.weight + sum(deltas)).t() + layer.bias
    assert torch.equal(run_base(layer, x), nn.functional.linear(x, layer.weight, layer.bias))
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            got = run_single(layer, x)
        assert got.requires_grad == gradients
        assert largest_error(got, expected) <= TOLERANCE[torch.float32]
