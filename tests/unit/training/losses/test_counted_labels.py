"""Labels are counted where the batch is made, and moved with it."""

from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lorakit.config import NOT_COUNTED
from lorakit.training.losses.counted_labels import (
    COUNTED,
    CountingCollator,
    count_labels,
    split_batch,
)

LABELS = torch.tensor([[7, NOT_COUNTED, 8], [NOT_COUNTED, 9, NOT_COUNTED]])


def test_positions_and_targets_are_those_of_the_labels():
    counted = count_labels({"labels": LABELS}, shifts=False)
    assert counted.labels == 3 and counted.tokens == 0
    assert counted.positions.tolist() == [0, 2, 4] and counted.targets.tolist() == [7, 8, 9]


def test_the_target_of_a_token_is_the_next_label_if_it_shifts():
    counted = count_labels({"labels": LABELS}, shifts=True)
    assert counted.labels == 2
    assert counted.positions.tolist() == [1, 3] and counted.targets.tolist() == [8, 9]
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    assert counted.select(hidden).tolist() == [[2.0, 3.0], [6.0, 7.0]]


def test_a_class_for_each_example_is_counted():
    counted = count_labels({"labels": torch.tensor([2, NOT_COUNTED, 0])}, shifts=False)
    assert counted.labels == 2 and counted.targets.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("inputs", "tokens"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}, 5),
        ({"position_ids": torch.tensor([[0, 1, 2], [0, 1, 0]])}, 5),
    ],
)
def test_tokens_are_those_without_padding_of_examples_that_count(inputs, tokens):
    inputs = {"input_ids": torch.zeros_like(LABELS), **inputs}
    assert count_labels({"labels": LABELS, **inputs}, shifts=True).tokens == tokens
    padding = torch.full_like(LABELS, NOT_COUNTED)
    padding[0] = LABELS[0]
    assert count_labels({"labels": padding, **inputs}, shifts=True).tokens == 3


def test_a_collator_counts_and_the_model_does_not_see_it():
    count = partial(count_labels, shifts=False)
    collate = CountingCollator(lambda examples: {"labels": torch.stack(examples)}, count)
    batch = collate(list(LABELS))
    moved = batch[COUNTED].to("meta")
    assert moved.labels == 3 and moved.positions.device.type == moved.targets.device.type == "meta"
    assert sum(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(batch)) == 3
    inputs, counted = split_batch(batch, count)
    assert inputs.keys() == {"labels"} and counted is batch[COUNTED]
    _, again = split_batch(inputs, count)
    assert torch.equal(again.positions, counted.positions)
