from collections import Counter

import numpy as np
import torch

from lorakit.data.mixture import Mixture, MixtureSampler

MIXTURE = Mixture((2.0, 0.5, 1.25), np.array([0] * 3 + [1] * 10 + [2] * 8))


def test_an_epoch_draws_examples_by_their_weights():
    drawn = Counter(MIXTURE.draw(torch.Generator().manual_seed(0)).tolist())

    assert MIXTURE.counts() == (6, 5, 10)
    assert [drawn[number] for number in range(3)] == [2, 2, 2]
    assert sum(drawn[number] for number in range(3, 13)) == 5
    assert max(drawn[number] for number in range(3, 13)) == 1
    assert sorted(drawn[number] for number in range(13, 21)) == [1] * 6 + [2] * 2


def test_a_small_weight_draws_at_least_one():
    assert Mixture((0.001, 1.0), np.array([0, 0, 1])).counts() == (1, 1)


def test_a_selection_keeps_the_sources():
    assert MIXTURE.select([0, 5, 20]).source_of.tolist() == [0, 1, 2]


def test_the_order_depends_on_seed_and_epoch_alone():
    def orders(seed, lengths=None):
        sampler = MixtureSampler(MIXTURE, lengths, 4, seed)
        assert len(sampler) == 21
        made = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            made.append(list(sampler))
        return made

    first = orders(1)
    assert first == orders(1) != orders(2)
    assert first[0] != first[1]
    assert set(first[0]) - set(first[1])  # another half of the second source
    lengths = torch.arange(21)[:, None] % 5 + 1
    grouped = orders(1, lengths)
    assert grouped == orders(1, lengths)
    assert sorted(grouped[0]) == sorted(first[0])


def test_steps_have_examples_of_like_length():
    mixture = Mixture((2.0, 0.5), np.array([0] * 100 + [1] * 100))
    lengths = torch.arange(200)[:, None] % 20 + 1

    order = MixtureSampler(mixture, lengths, 5, 0).order()

    spreads = [np.ptp(lengths[order[at : at + 5]].numpy()) for at in range(0, 250, 5)]
    assert np.mean(spreads) < 4  # of at most 19
