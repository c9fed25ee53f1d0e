"""A variant that overrides nothing changes nothing."""

import pytest
import torch

from lorakit.layers import LoraEmbedding, LoraLinear
from lorakit.layers.variants.variant import Variant
from lorakit.ops import LowRankTerm


class Idle(Variant):
    setting, name = "use_pause", "pause"


def test_it_changes_nothing():
    term = LowRankTerm(torch.empty(1, 2), torch.empty(3, 1), 2.0)
    tensor, base = torch.ones(3), torch.zeros(3)
    assert Idle.term(term, tensor, None, None) is term
    assert Idle.bias(base, base, tensor) is base and Idle.bias(None, None, tensor) is None
    assert Idle.change(term.B, term.B, tensor) is term.B
    assert Idle.to_file(tensor, (3, 3)) is tensor is Idle.from_file(tensor)
    assert Idle.difference_in_peft(groups=2) is None
    assert Idle.obstacle(LoraLinear) is None is Idle.obstacle(LoraEmbedding)


def test_its_title_and_its_tensor():
    assert Idle.title() == "a pause (use_pause)"
    assert Idle.shape(4, 6) == (6,)
    with pytest.raises(TypeError, match="Idle does not say what its tensor is at first"):
        Idle.initial(None, None)
