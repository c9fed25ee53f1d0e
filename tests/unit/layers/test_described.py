"""What a layer says of itself: weight, bias and terms, each with what its update adds."""

import torch
from torch import nn

from lorakit.layers import KernelShape, LoraConv2d, LoraLinear, LowRankUpdate
from lorakit.layers.executors.single import run_base
from lorakit.layers.variants.dora import Dora
from tolerances import TOLERANCE, largest_error


def update(r=2, p=0.0, **options):
    return LowRankUpdate(torch.randn(r, 6), torch.randn(4, r), 0.5, p, **options)


def adapted(**updates):
    layer = LoraLinear.adapt_in_place(nn.Linear(6, 4))
    for name, one in updates.items():
        layer.updates[name] = one
    layer.activate(tuple(updates))
    return layer


def test_a_fresh_layer_is_the_base():
    layer = LoraLinear.adapt_in_place(nn.Linear(6, 4))
    assert layer.executor is run_base and layer.acting_updates() == []
    W0, bias, terms = layer.operands([])
    assert W0 is layer.weight and bias is layer.bias and terms == []


def test_updates_on_one_input_share_their_mask():
    layer = adapted(a=update(p=0.1), b=update(p=0.2), c=update()).train()
    a, b, c = layer.operands(layer.acting_updates()).terms
    assert a.seed is b.seed is not None and c.seed is None
    assert (a.drop_probability, b.drop_probability) == (0.1, 0.2)


def test_the_first_trained_bias_replaces_the_base_s():
    one, two = torch.randn(4), torch.randn(4)
    layer = adapted(a=update(), b=update(bias=one), c=update(bias=two))
    assert layer.operands(layer.acting_updates()).bias is layer.updates["b"].bias


def test_a_magnitude_is_a_row_scale():
    layer = adapted(a=update(magnitude=torch.rand(4)), b=update())
    a, b = layer.operands(layer.acting_updates()).terms
    norms = (layer.weight + layer.updates["a"].delta_weight()).norm(dim=1)
    assert a.row_scale.lengths is layer.updates["a"].magnitude and b.row_scale is None
    assert largest_error(a.row_scale.norms, norms) <= TOLERANCE[torch.float32]
    assert largest_error(Dora.initial(layer, layer.updates["a"]), norms) <= 1e-6


def test_the_shape_of_a_kernel():
    conv = nn.Conv2d(4, 6, (3, 2), groups=2)
    assert LoraConv2d.kernel_shape(conv) == KernelShape(4, (3, 2), 2)
    assert LoraConv2d.kernel_shape(conv).columns == 24
    assert LoraLinear.kernel_shape(nn.Linear(2, 2)) is None
