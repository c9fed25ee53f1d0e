"""DoRA: lengths of rows in operands, weights and files."""

import pytest
import torch
from torch import nn

from lorakit.layers import LoraConv1d, LoraEmbedding, LoraLinear, LowRankUpdate
from lorakit.layers.kinds.attention import LoraMultiheadAttention
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.variants.dora import Dora
from tolerances import TOLERANCE, largest_error


def layer_with(magnitude):
    torch.manual_seed(0)
    layer = LoraLinear.adapt_in_place(nn.Linear(6, 4))
    layer.updates["a"] = LowRankUpdate(
        torch.randn(2, 6), torch.randn(4, 2), 0.5, magnitude=magnitude
    )
    layer.activate(("a",))
    return layer, layer.updates["a"]


def test_the_first_lengths_are_the_norms_so_that_nothing_changes():
    layer, update = layer_with(torch.ones(4))
    W = layer.weight + update.delta_weight()
    lengths = Dora.initial(layer, update)
    assert largest_error(lengths, W.norm(dim=1)) <= TOLERANCE[torch.float32]
    W0 = layer.weight.detach()
    change = Dora.change(update.delta_weight(), W0, lengths)
    assert largest_error(change, update.delta_weight()) <= TOLERANCE[torch.float32]


def test_the_weight_has_rows_of_these_lengths():
    lengths = torch.rand(4) + 0.5
    layer, update = layer_with(lengths)
    W = layer.weight.detach() + update.change(layer.weight.detach())
    assert largest_error(W.norm(dim=1), lengths) <= TOLERANCE[torch.float32]


def test_a_row_of_zeros_stays_zero():
    change = Dora.change(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2))
    assert change.eq(0).all()


def test_the_operand_is_a_row_scale():
    layer, update = layer_with(torch.rand(4))
    scale = layer.operands([update]).terms[0].row_scale
    assert scale is not None and scale.lengths is update.magnitude


@pytest.mark.parametrize(
    ("kernel", "shape"), [((), (4,)), ((3,), (1, 4, 1)), ((3, 2), (1, 4, 1, 1))]
)
def test_files_hold_it_as_peft_does(kernel, shape):
    lengths = torch.arange(4.0)
    stored = Dora.to_file(lengths, kernel)
    assert stored.shape == shape and torch.equal(Dora.from_file(stored), lengths)


def test_which_kinds_can_have_it():
    assert all(Dora.obstacle(kind) is None for kind in (LoraLinear, LoraEmbedding, LoraConv1d))
    for kind in (LoraMultiheadAttention, AdaptedParameter):
        assert Dora.obstacle(kind) == "has no magnitude"


def test_peft_differs_for_groups_alone():
    assert Dora.difference_in_peft(1) is None
    assert "convolutions in groups" in Dora.difference_in_peft(2)
