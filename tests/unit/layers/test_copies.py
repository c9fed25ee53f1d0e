"""Copies of modules for an adapter to train: of the plain class, sharing what is not trained."""

import torch
from torch import nn

from lorakit.layers import (
    LoraLinear,
    LowRankUpdate,
    TrainedTokens,
    copy_with_own,
    copy_with_trained_tokens,
    full_copy,
)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.out_proj = nn.Linear(4, 4), nn.Linear(4, 2)


def test_a_full_copy_owns_its_parameters():
    module = Head()
    made = full_copy(module, {})
    assert type(made) is Head
    assert {id(p) for p in made.parameters()}.isdisjoint({id(p) for p in module.parameters()})


def test_full_copies_of_one_adapter_keep_parameters_tied():
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    memo = {}
    assert full_copy(one, memo).weight is full_copy(other, memo).weight


def test_a_full_copy_of_an_adapted_part_is_plain():
    module = Head()
    LoraLinear.adapt_in_place(module.dense).updates["x"] = LowRankUpdate(
        torch.zeros(1, 4), torch.zeros(4, 1), 1.0
    )
    made = full_copy(module, {})
    assert type(made.dense) is nn.Linear
    assert type(module.dense) is LoraLinear


def test_a_copy_that_owns_its_bias_shares_the_weight():
    layer = nn.Linear(4, 3).bfloat16()
    made = copy_with_own(layer, ["bias"], torch.float32)
    assert made.weight is layer.weight
    assert made.bias is not layer.bias and made.bias.dtype == torch.float32
    assert torch.equal(made.bias, layer.bias.float())


def test_trained_tokens_of_an_embedding_keep_its_class_and_padding():
    class Scaled(nn.Embedding):
        def forward(self, input):
            return 2 * super().forward(input)

    table, rows = Scaled(6, 3, padding_idx=4), nn.Parameter(torch.randn(2, 3))
    made = copy_with_trained_tokens(table, [4, 1], rows, is_named=True)
    assert isinstance(made, TrainedTokens) and made.rows is rows
    assert type(made.table) is Scaled and made.table.padding_idx == 0
    ids = torch.tensor([[1, 0, 4]])
    got = made.correct(table(ids), table, ids)
    assert torch.equal(got, torch.stack([2 * rows[1], table(ids)[0, 1], 2 * rows[0]])[None])
