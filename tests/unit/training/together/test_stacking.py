"""Batches of several runs as one: what is padded, what can be stacked, and what comes back."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lorakit.errors import TrainingError
from lorakit.training.together.stacking import (
    can_be_stacked,
    kind_of,
    map_tensors,
    part_of,
    put_part_,
    stack,
)


def inputs(rows, tokens, **more):
    ids = torch.arange(1, rows * tokens + 1).view(rows, tokens)
    return {"input_ids": ids, "use_cache": False, **more}


def test_shorter_rows_are_padded_at_their_end_and_masked():
    stacked = stack([inputs(1, 2), inputs(2, 3, attention_mask=torch.ones(2, 3).long())])
    assert stacked.inputs["input_ids"].tolist() == [[1, 2, 0], [1, 2, 3], [4, 5, 6]]
    assert stacked.inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert stacked.inputs["use_cache"] is False
    assert (stacked.rows, stacked.tokens, stacked.own_tokens) == (3, 3, (2, 3, 3))


def test_rows_of_one_length_without_a_mask_get_none():
    assert "attention_mask" not in stack([inputs(1, 2), inputs(1, 2)]).inputs


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_a_mask_of_queries_and_keys_closes_what_is_added(dtype):
    open_value, closed = (True, False) if dtype == torch.bool else (0.0, torch.finfo(dtype).min)
    masks = [torch.full((1, 1, n, n), open_value, dtype=dtype) for n in (1, 2)]
    one, other = (inputs(1, n, attention_mask=mask) for n, mask in zip((1, 2), masks, strict=True))
    found = stack([one, other]).inputs["attention_mask"]
    assert found[0, 0].tolist() == [[open_value, closed], [closed, open_value]]
    assert found[1, 0].tolist() == [[open_value] * 2] * 2


def test_what_differs_in_kind_is_not_stacked():
    assert kind_of(inputs(1, 2)) == kind_of(inputs(2, 5, attention_mask=torch.ones(2, 5).long()))
    for other in (
        inputs(1, 2, position_ids=torch.zeros(1, 2).long()),
        inputs(1, 2) | {"use_cache": True},
        inputs(1, 2, attention_mask=torch.ones(1, 1, 2, 2)),
    ):
        assert kind_of(inputs(1, 2)) != kind_of(other)


def test_only_rows_of_tokens_can_be_stacked():
    assert can_be_stacked(inputs(2, 3, attention_mask=torch.ones(2, 1, 3, 3), token_type_ids=None))
    assert can_be_stacked({"inputs_embeds": torch.zeros(2, 3, 4)})
    assert not can_be_stacked({"use_cache": False})
    assert not can_be_stacked(inputs(2, 3, cache_position=torch.arange(3)))
    assert not can_be_stacked(inputs(2, 3, cache=object()))
    positions = torch.zeros(2, 3).long()
    assert not can_be_stacked(inputs(2, 3, position_ids=positions)), "a packed sequence"
    mask = torch.ones(2, 1, 3, 3)
    assert can_be_stacked(inputs(2, 3, position_ids=positions, attention_mask=mask))


def test_each_run_gets_its_part_without_padding():
    stacked = stack([inputs(1, 2), inputs(2, 3)])
    hidden, pooled = torch.randn(3, 3, 4), torch.randn(3, 4)
    outputs = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
    first, second = (
        map_tensors(lambda output, part=part: part_of(output, stacked, part), outputs)
        for part in stacked.parts
    )
    assert torch.equal(first.last_hidden_state, hidden[:1, :2])
    assert torch.equal(second.last_hidden_state, hidden[1:])
    assert torch.equal(first.pooler_output, pooled[:1])
    whole = torch.zeros_like(hidden)
    for part, one in zip(stacked.parts, (first, second), strict=True):
        put_part_(whole, stacked, part, one.last_hidden_state)
    assert torch.equal(whole[1:], hidden[1:]) and torch.equal(whole[0, :2], hidden[0, :2])
    assert not whole[0, 2].any()


def test_tuples_and_other_values_keep_their_structure():
    assert map_tensors(lambda t: t + 1, (torch.zeros(1), None, [3])) == (1, None, [3])


def test_an_output_that_is_not_rows_is_refused():
    stacked = stack([inputs(1, 2), inputs(1, 2)])
    with pytest.raises(TrainingError, match=r"returns a tensor of shape \(4, 5\), expected 2 rows"):
        part_of(torch.zeros(4, 5), stacked, stacked.parts[0])
