"""Layers, slices or groups and settings that do not fit each other."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lorakit import (
    LoraConfig,
    adapter_names,
    add_adapter,
)
from lorakit.errors import (
    ConfigError,
    ShapeError,
    TargetError,
)
from lorakit.injection.selection.checks import check_sites, check_slices, split_by_conv_groups
from lorakit.injection.selection.parameters import weight_class_of
from lorakit.injection.selection.sites import Site
from lorakit.layers import LoraConv1d, LoraEmbedding, LoraLinear
from tiny_models import (
    TinyNet,
    gpt2,
    llama,
    logits,
)

ROOMS = {
    "too small": ({"r": 3}, 2, "self_attn.q_proj (r=3)"),
    "no number": ({}, True, "got max_rank=True, expected a whole number above 0"),
    "zero": ({}, 0, "got max_rank=0, expected a whole number above 0"),
    "a start of the base": ({"init_lora_weights": "olora"}, 4, "init_lora_weights='olora'"),
    "a start of data": ({"init_lora_weights": "eva"}, 4, "init_lora_weights='eva'"),
    "parts": ({"enable_lora": {"c_attn": [True, False, True]}}, 4, "not in slices or groups"),
}


@pytest.mark.parametrize(("options", "max_rank", "said"), ROOMS.values(), ids=ROOMS)
def test_room_that_cannot_be_kept(options, max_rank, said):
    model = gpt2() if "enable_lora" in options else llama()
    with pytest.raises(ConfigError, match="Cannot keep room for larger ranks") as caught:
        add_adapter(model, LoraConfig(**({"r": 2} | options)), max_rank=max_rank)
    assert said in str(caught.value)
    assert adapter_names(model) == ()


def test_embeddings_are_refused_because_their_lora_a_is_zero():
    model = llama()
    before = logits(model)
    with pytest.raises(TargetError, match=r"model\.embed_tokens with freeze_lora_a=True: Emb"):
        add_adapter(model, LoraConfig(freeze_lora_a=True, target_modules=["embed_tokens"]))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("target", ["up", "down"])
def test_the_smaller_side_of_a_layer_limits_the_rank(target):
    # up maps 8 to 16 and down 16 to 8.
    with pytest.raises(ShapeError, match=rf"layers\.0\.{target} \(in="):
        add_adapter(TinyNet(), LoraConfig(r=9, target_modules=[target]))
    add_adapter(TinyNet(), LoraConfig(r=8, target_modules=[target]))


def test_a_long_list_of_ranks_is_cut():
    said = r"layers\.2\.up \(in=8, out=16, r=9\) and 3 more; expected r up to"
    with pytest.raises(ShapeError, match=said):
        add_adapter(TinyNet(layers=4), LoraConfig(r=9))


def test_rank_equal_to_the_layer_is_allowed():
    add_adapter(llama(), LoraConfig(r=16, target_modules=["q_proj"]))


def test_the_rank_of_a_slice_is_that_of_its_outputs():
    sliced = Site("qkv", nn.Linear(8, 12), LoraLinear, 5, 1.0, (True, False, True))
    with pytest.raises(ShapeError, match=r"qkv \(in=8, out=4, r=5\)"):
        check_sites(LoraConfig(r=5), [sliced])
    check_sites(LoraConfig(r=4), [replace(sliced, r=4)])


def test_dropout_needs_an_input_that_is_seen():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

    gate = Gate()
    site = Site("gate", gate, weight_class_of(gate), 2, 1.0)
    with pytest.raises(TargetError, match=r"gate with lora_dropout=0\.1: Gate reads its weight"):
        check_sites(LoraConfig(lora_dropout=0.1), [site])
    check_sites(LoraConfig(), [site])


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
