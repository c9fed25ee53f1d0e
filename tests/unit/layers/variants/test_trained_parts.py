"""The trained bias, and lora_A that stays as it is."""

import torch
from torch import nn

from lorakit.layers import LoraEmbedding, LoraLinear, LowRankUpdate
from lorakit.layers.variants.trained_parts import FrozenA, TrainedBias


def update(*variants, **companions):
    return LowRankUpdate(torch.ones(2, 6), torch.ones(4, 2), 0.5, 0.0, variants, **companions)


def test_a_trained_bias_acts_instead_of_the_base_s_and_the_first_one_wins():
    base, first, second = torch.zeros(4), torch.ones(4), torch.ones(4)
    assert TrainedBias.bias(base, base, first) is first
    assert TrainedBias.bias(first, base, second) is first


def test_it_begins_as_the_base_s():
    layer = nn.Linear(6, 4)
    assert torch.equal(TrainedBias.initial(layer, None), layer.bias)


def test_merging_takes_it_and_unmerging_gives_the_base_s_back():
    layer = LoraLinear.adapt_in_place(nn.Linear(6, 4))
    before = layer.bias
    layer.updates["a"] = update(bias=torch.full((4,), 3.0))
    layer.activate(("a",))
    layer.merge()
    assert layer.bias.eq(3).all() and not layer.bias.requires_grad
    layer.unmerge()
    assert layer.bias is before


def test_a_frozen_lora_a_never_needs_a_gradient():
    made = update(FrozenA, magnitude=torch.ones(4))
    made.require_gradients_(False)
    made.require_gradients_(True)
    needed = {name for name, p in made.named_parameters() if p.requires_grad}
    assert needed == {"lora_B", "magnitude"}


def test_a_lora_a_of_zeros_cannot_be_frozen():
    assert FrozenA.obstacle(LoraLinear) is None
    assert FrozenA.obstacle(LoraEmbedding) == "has a lora_A that is zero at first"
