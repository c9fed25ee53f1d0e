"""Layers whose slices or groups are adapted one by one."""

import pytest
from torch import nn

from lorakit.config import LoraConfig
from lorakit.errors import ShapeError, TargetError
from lorakit.injection.selection.checks.slices import check_slices, split_by_conv_groups
from lorakit.injection.selection.sites import Site
from lorakit.layers import LoraConv1d, LoraEmbedding, LoraLinear


def conv(groups, r=6):
    return Site("conv", nn.Conv1d(6, 12, 3, groups=groups), LoraConv1d, r, 0.5)


def sliced(module=None, kind=LoraLinear, slices=(True, False, True)):
    return Site("qkv", module or nn.Linear(4, 12), kind, 2, 0.5, slices)


def test_each_group_has_its_share_of_the_rank():
    one, plain = conv(groups=1), Site("up", nn.Linear(4, 4), LoraLinear, 3, 0.5)
    assert split_by_conv_groups(one, LoraConfig()) is one
    assert split_by_conv_groups(plain, LoraConfig()) is plain
    split = split_by_conv_groups(conv(groups=3), LoraConfig())
    assert (split.r, split.slices, split.scaling) == (2, (True, True, True), 0.5)


def test_a_rank_that_groups_cannot_share():
    with pytest.raises(ShapeError, match=r"conv: got r=5, expected a multiple of its 3 groups"):
        split_by_conv_groups(conv(groups=3, r=5), LoraConfig())


@pytest.mark.parametrize("init", ["pissa", "olora", "eva"])
def test_an_initialization_of_the_whole_weight(init):
    config = LoraConfig(init_lora_weights=init)
    said = rf"init_lora_weights='{init}', expected one of \[True, "
    with pytest.raises(TargetError, match=f"slices of conv with {said}"):
        split_by_conv_groups(conv(groups=3), config)
    with pytest.raises(TargetError, match=f"slices of qkv with {said}"):
        check_slices(config, [sliced()])
    check_slices(config, [sliced(slices=None)])


def test_slices_are_equal_parts_of_a_linear_layer_s_outputs():
    check_slices(LoraConfig(), [sliced(), sliced(slices=(True,) * 12)])
    with pytest.raises(ShapeError, match=r"has 3 slices, expected a divisor of its 10 outputs"):
        check_slices(LoraConfig(), [sliced(nn.Linear(4, 10))])
    with pytest.raises(TargetError, match="it is a Embedding, expected a linear layer"):
        check_slices(LoraConfig(), [sliced(nn.Embedding(4, 12), LoraEmbedding)])
