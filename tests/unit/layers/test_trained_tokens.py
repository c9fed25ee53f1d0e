"""Trained tokens correct what the base returns, in any order of their indices."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorakit.layers import TrainedTokens, copy_with_trained_tokens
from tolerances import TOLERANCE, largest_error


def replaced_rows(weight, indices, rows):
    changed = weight.detach().clone()
    changed[indices] = rows.detach().to(changed.dtype)
    return changed


@pytest.mark.parametrize("indices", [[0], [5, 2, 3], [3, 2, 5]], ids=str)
def test_an_embedding_returns_the_trained_vectors(indices):
    table, rows = nn.Embedding(6, 3), nn.Parameter(torch.randn(len(indices), 3))
    tokens = copy_with_trained_tokens(table, indices, rows, is_named=True)
    ids = torch.arange(6).view(2, 3)
    got = tokens.correct(table(ids), table, ids)
    assert torch.equal(got, replaced_rows(table.weight, indices, rows)[ids])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_output_layer_returns_the_trained_logits(dtype):
    layer, rows = nn.Linear(4, 6).to(dtype), nn.Parameter(torch.randn(2, 4))
    tokens = copy_with_trained_tokens(layer, [5, 1], rows, is_named=False)
    x = torch.randn(2, 3, 4, dtype=dtype)
    got = tokens.correct(layer(x), layer, x)
    expected = F.linear(x, replaced_rows(layer.weight, [5, 1], rows), layer.bias)
    assert got.dtype == dtype and largest_error(got, expected) <= 2 * TOLERANCE[dtype]


def test_rows_that_are_not_trained_yet_change_no_bit():
    layer = nn.Linear(4, 6)
    rows = nn.Parameter(layer.weight.detach()[[2, 0]].clone())
    tokens = copy_with_trained_tokens(layer, [2, 0], rows, is_named=True)
    x = torch.randn(3, 4)
    assert torch.equal(tokens.correct(layer(x), layer, x), layer(x))


def test_state_dicts_hold_the_rows_and_nothing_else():
    table, rows = nn.Embedding(6, 3), nn.Parameter(torch.randn(1, 3))
    assert list(copy_with_trained_tokens(table, [2], rows, is_named=True).state_dict()) == [
        "table.weight"
    ]
    assert "rows=1" in repr(copy_with_trained_tokens(nn.Linear(3, 6), [2], rows, is_named=True))
    with pytest.raises(TypeError, match="does not say how it acts"):
        TrainedTokens([1], torch.device("cpu"), is_named=True).correct(rows, table, rows)
