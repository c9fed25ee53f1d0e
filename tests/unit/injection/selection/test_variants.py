"""Which variants a configuration turns on, and which layers refuse them."""

import pytest
from torch import nn

from lorakit import LoraConfig
from lorakit.errors import TargetError
from lorakit.injection.selection.sites import Site
from lorakit.injection.selection.variants import (
    base_dependent,
    check_variants,
    obstacle_of_kind,
    obstacle_of_parameters,
    variants_of,
)
from lorakit.layers import LoraEmbedding, LoraLinear
from lorakit.layers.variants.dora import Dora
from lorakit.layers.variants.trained_parts import FrozenA

PLAIN, BOTH = LoraConfig(), LoraConfig(use_dora=True, freeze_lora_a=True)


def test_a_configuration_turns_them_on():
    assert variants_of(PLAIN) == [] and variants_of(BOTH) == [Dora, FrozenA]
    assert variants_of(LoraConfig(bias="all")) == []  # the plan decides for each layer
    assert base_dependent(BOTH) is Dora and base_dependent(LoraConfig(freeze_lora_a=True)) is None


def test_kinds_that_cannot_have_them():
    assert obstacle_of_kind(PLAIN, LoraEmbedding) is None is obstacle_of_kind(BOTH, LoraLinear)
    setting, reason = obstacle_of_kind(BOTH, LoraEmbedding)
    assert setting == "freeze_lora_a" and "zero at first" in reason
    assert obstacle_of_parameters(BOTH) == ("use_dora", "has no magnitude")
    assert obstacle_of_parameters(PLAIN) is None


def test_the_first_layer_is_named_with_what_to_do():
    sites = [
        Site("a", nn.Linear(4, 4), LoraLinear, 2, 1.0),
        Site("b", nn.Embedding(4, 4), LoraEmbedding, 2, 1.0),
    ]
    check_variants(PLAIN, sites)
    with pytest.raises(TargetError) as caught:
        check_variants(BOTH, sites)
    assert str(caught.value) == (
        "Cannot adapt b with freeze_lora_a=True: Embedding has a lora_A that is zero at first, "
        "expected layers that can have it. Leave freeze_lora_a out, or the layer with "
        "exclude_modules=['b']."
    )
