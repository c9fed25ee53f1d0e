"""The base's dropout on stacked batches: the bits that each batch has alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorakit.errors import TrainingError
from lorakit.training.together.dropout_by_run import DropoutByRun
from lorakit.training.together.process_state import ProcessState, RandomState
from lorakit.training.together.stacking import part_of, stack

SIZES = ((2, 3), (1, 5))


def batches(*shape):
    return [
        torch.randn(rows, *(tokens if n == "T" else n for n in shape)) for rows, tokens in SIZES
    ]


def stacked_with(tensors, dims):
    stacked = stack([{"input_ids": torch.zeros(rows, tokens).long()} for rows, tokens in SIZES])
    whole = []
    for tensor in tensors:
        widths = [0] * (2 * tensor.ndim)
        for dim in dims:
            widths[2 * (tensor.ndim - 1 - dim) + 1] = stacked.tokens - tensor.shape[dim]
        whole.append(F.pad(tensor, widths))
    return stacked, torch.cat(whole)


def states():
    found = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        found.append(ProcessState.current())
    return found


def alone(compute):
    found = []
    for number, seed in enumerate((3, 4)):
        torch.manual_seed(seed)
        found.append(compute(number))
    return found


@pytest.mark.parametrize(
    ("shape", "dims"), [(("T", 4), (1,)), ((4,), ()), ((2, "T", "T"), (2, 3))], ids=str
)
def test_dropout_has_the_bits_of_each_batch_alone(shape, dims):
    tensors = batches(*shape)
    stacked, whole = stacked_with(tensors, dims)
    expected = alone(lambda n: F.dropout(tensors[n], 0.5))
    with DropoutByRun(stacked, [RandomState(state) for state in states()]):
        found = nn.Dropout(0.5)(whole)
    for part, one in zip(stacked.parts, expected, strict=True):
        ours = found[part.first :][: part.rows]
        for dim in dims:
            ours = ours.narrow(dim, 0, part.tokens)
        assert torch.equal(ours, one)


@pytest.mark.parametrize("width", [4, 5], ids=["narrow", "as wide as the rows are long"])
def test_attention_has_the_bits_of_each_batch_alone(width):
    tensors = batches(2, "T", width)
    stacked, whole = stacked_with(tensors, (2,))
    mask = torch.ones(stacked.rows, 1, stacked.tokens, stacked.tokens, dtype=torch.bool)
    expected = alone(
        lambda n: F.scaled_dot_product_attention(
            *[tensors[n]] * 3, attn_mask=mask[:1, :, : SIZES[n][1], : SIZES[n][1]], dropout_p=0.3
        )
    )
    with DropoutByRun(stacked, [RandomState(state) for state in states()]):
        found = F.scaled_dot_product_attention(whole, whole, whole, attn_mask=mask, dropout_p=0.3)
    for part, one in zip(stacked.parts, expected, strict=True):
        assert torch.equal(found[part.first :][: part.rows, :, : part.tokens], one)


def test_what_has_no_rows_of_the_runs_is_refused():
    stacked, _ = stacked_with(batches("T", 4), (1,))
    with (
        DropoutByRun(stacked, [RandomState(state) for state in states()]),
        pytest.raises(TrainingError, match=r"of shape \(16, 4\), expected 3 rows as its first"),
    ):
        F.dropout(torch.ones(16, 4), 0.5)


def test_without_dropout_nothing_is_split():
    stacked, whole = stacked_with(batches("T", 4), (1,))
    with DropoutByRun(stacked, [RandomState(state) for state in states()]):
        assert torch.equal(F.dropout(whole, 0.5, training=False), whole)
    assert part_of(whole, stacked, stacked.parts[0]).shape == (2, 3, 4)
