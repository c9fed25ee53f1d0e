"""Orders of like length: each example once, little padding, the same for the same seed."""

import pytest
import torch
from datasets import Dataset

from lorakit.data.like_length import (
    LikeLengthSampler,
    like_length_order,
    longest_first,
    padding_share,
    token_lengths,
)


def random_lengths(count, columns=1):
    return torch.randint(1, 200, (count, columns), generator=torch.Generator().manual_seed(count))


def order_of(lengths, step_examples, seed=0):
    return like_length_order(lengths, step_examples, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("count", [1, 3, 8, 61, 1000])
def test_an_order_has_each_example_once(count, columns):
    order = order_of(random_lengths(count, columns), 8)
    assert sorted(order.tolist()) == list(range(count))


def test_steps_have_examples_of_like_length_and_are_shuffled():
    lengths = random_lengths(3205)
    order = order_of(lengths, 8)
    assert padding_share(lengths, torch.arange(3205), 8) > 0.4
    assert padding_share(lengths, order, 8) < 0.05
    # Whole batches of a step are of like length too, in whatever order the steps are.
    means = lengths[order[:3200]].view(-1, 8).float().mean(1)
    rises = (means.diff() > 0).float().mean()
    assert 0.4 < rises < 0.6


def test_the_step_with_the_longest_example_comes_first():
    lengths = random_lengths(200)
    lengths[77] = 500
    for seed in range(5):
        order = order_of(lengths, 8, seed)
        assert 77 in order[:8]


def test_a_small_dataset_has_other_steps_in_each_epoch():
    lengths = random_lengths(64)
    steps = [
        {frozenset(step.tolist()) for step in order_of(lengths, 8, seed).split(8)}
        for seed in (0, 1)
    ]
    assert len(steps[0] & steps[1]) <= 1


def test_targets_break_ties_between_inputs():
    lengths = torch.tensor([[5, 1], [5, 9], [7, 2], [5, 8]])
    assert longest_first(lengths).tolist() == [2, 1, 3, 0]


def test_the_order_of_an_epoch_depends_on_the_seed_and_its_number_alone():
    sampler = LikeLengthSampler(random_lengths(100), 8, seed=3)
    first = list(sampler)
    torch.rand(5)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first and len(sampler) == len(second) == 100
    other = LikeLengthSampler(random_lengths(100), 8, seed=3)
    other.set_epoch(1)
    assert list(other) == second


def test_padding_is_counted_as_collators_pad():
    lengths = torch.tensor([[3], [5], [8], [2]])
    # Batches of 3 and 1: 3 x 8 + 2 tokens, of which 18 are real.
    assert padding_share(lengths, torch.arange(4), 3) == pytest.approx(1 - 18 / 26)
    assert padding_share(lengths, torch.arange(4), 1) == 0
    assert padding_share(lengths, torch.arange(4), 1, multiple=4) == pytest.approx(1 - 18 / 24)
    pairs = torch.tensor([[3, 1], [5, 2]])
    assert padding_share(pairs, torch.arange(2), 2) == pytest.approx(1 - 11 / 14)


def test_lengths_are_those_of_inputs_and_of_separate_targets():
    inputs = [[1, 2, 3], [4], [5, 6]]
    same = Dataset.from_dict({"input_ids": inputs, "labels": inputs})
    targets = Dataset.from_dict({"input_ids": inputs, "labels": [[1], [2, 3], [4]]})
    classes = Dataset.from_dict({"input_ids": inputs, "labels": [0, 1, 0]})
    assert token_lengths(same).tolist() == token_lengths(classes).tolist() == [[3], [1], [2]]
    assert token_lengths(targets).tolist() == [[3, 1], [1, 2], [2, 1]]
    assert token_lengths(targets.select([2, 0])).tolist() == [[2, 1], [3, 1]]
    plain = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(1)} for ids in inputs]
    assert token_lengths(plain).tolist() == [[3], [1], [2]]
