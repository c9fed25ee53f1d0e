"""The mask is that of its formula, and its elements are as independent draws."""

import itertools
import math

import pytest
import torch

from fixtures.random_masks import assert_binomial, correlation, splitmix64
from lorakit.ops import apply_keep_mask, draw_seed, keep_mask
from lorakit.ops.dropout_mask import exact_drop_probability

CPU = torch.device("cpu")
MANY = 1 << 18


def mask(p, seed, shape=(MANY,)):
    return keep_mask(shape, p, torch.tensor(seed), CPU)


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345, 2**63 - 2])
def test_the_mask_is_that_of_splitmix64(seed):
    lanes = []
    for index in range(8):
        z = splitmix64(seed + index)
        lanes += [(z >> 16 * lane & 0xFFFF) ^ 0x8000 for lane in range(4)]  # signed, shifted up
    assert mask(0.25, seed, (32,)).tolist() == [lane >= 0.25 * 65536 for lane in lanes]


def test_a_lane_is_kept_from_its_own_value_on():
    for position in range(32):
        lane = (splitmix64(77 + position // 4) >> 16 * (position % 4) & 0xFFFF) ^ 0x8000
        assert mask(lane / 65536, 77, (32,))[position]
        assert not mask((lane + 1) / 65536, 77, (32,))[position]


@pytest.mark.parametrize("p", [0.01, 0.05, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345])
def test_the_share_of_dropped_elements_is_p(p, seed):
    dropped = 1 - mask(p, seed).double().mean().item()
    deviation = math.sqrt(p * (1 - p) / MANY)
    assert abs(dropped - p) < 4.5 * deviation  # 1 in 150,000 by chance, and the seeds are fixed


@pytest.mark.parametrize("lane", range(4))
def test_every_lane_of_a_word_drops_alike(lane):
    # FACTS: the top lane of a biased generator is what went wrong elsewhere.
    p, count = 0.3, MANY // 4
    dropped = 1 - mask(p, 5)[lane::4].double().mean().item()
    assert abs(dropped - p) < 4.5 * math.sqrt(p * (1 - p) / count)


def test_words_are_uniform_in_all_sixteen_bits():
    # Thresholds at every 1/16 must each hold their share: a chi-square of 15 degrees of freedom.
    keeps = [mask(k / 16, 7).long().sum().item() for k in range(16)] + [0]
    observed = [keeps[k] - keeps[k + 1] for k in range(16)]
    expected = MANY / 16
    assert sum((o - expected) ** 2 / expected for o in observed) < 45  # p = 0.0001


@pytest.mark.parametrize("other", [1, 2, 1 << 20, 1 << 62])
def test_masks_of_different_seeds_are_independent(other):
    assert abs(correlation(mask(0.5, 0), mask(0.5, other))) < 4.5 / math.sqrt(MANY)


@pytest.mark.parametrize("width", [64, 100, 101])
def test_rows_and_columns_are_independent(width):
    rows = mask(0.5, 3, (MANY // width, width))
    assert abs(correlation(rows[:-1].flatten(), rows[1:].flatten())) < 4.5 / math.sqrt(MANY)
    assert abs(correlation(rows[:, :-1].flatten(), rows[:, 1:].flatten())) < 4.5 / math.sqrt(MANY)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.3, 0.5, 0.8])
def test_the_kept_share_of_a_step_has_the_mean_and_variance_of_independent_draws(p):
    torch.manual_seed(1)
    masks = [keep_mask((512,), p, draw_seed(), CPU) for _ in range(1000)]
    assert_binomial(torch.stack(masks).double().mean(1), p, 512)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_blocks_of_one_mask_vary_like_independent_draws(p):
    for n in (4, 64, 1024):  # elements that went together would show in the variance
        assert_binomial(mask(p, 21).double().view(-1, n).mean(1), p, n)


def test_every_position_is_dropped_alike_over_the_steps():
    # Each position's share of K steps is off by sqrt(p (1 - p) / K); 5 sigma for any of 96 is 1
    # in 18,000 by chance.
    p, K = 0.3, 2000
    torch.manual_seed(2)
    kept = sum(keep_mask((96,), p, draw_seed(), CPU).double() for _ in range(K)) / K
    assert (kept - (1 - p)).abs().max() < 5 * math.sqrt(p * (1 - p) / K)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_of_different_layers_and_steps_are_independent(p):
    # The correlation of two independent masks of n elements is off by 1 / sqrt(n), whatever p is.
    torch.manual_seed(3)
    n = 1 << 14
    masks = torch.stack([keep_mask((n,), p, draw_seed(), CPU).double() for _ in range(12)])
    correlations = torch.corrcoef(masks) - torch.eye(12)
    assert correlations.abs().max() < 5 / math.sqrt(n)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 8, 64, 768, 4096])
def test_neighbours_are_independent(p, distance):
    # Lanes of one word, lanes of the next one, and the rows above for usual widths.
    flat = mask(p, 2**62 + 3)
    pairs = len(flat) - distance
    assert abs(correlation(flat[:-distance], flat[distance:])) < 5 / math.sqrt(pairs)


@pytest.mark.parametrize("one", range(4))
def test_the_lanes_of_a_word_are_independent(one):
    lanes = mask(0.3, 17).view(-1, 4)
    for other in range(one):
        assert abs(correlation(lanes[:, one], lanes[:, other])) < 5 / math.sqrt(len(lanes))


def test_a_mask_repeats_under_manual_seed():
    def steps():
        torch.manual_seed(9)
        return [apply_keep_mask(torch.ones(3, 50), 0.4, draw_seed()) for _ in range(4)]

    first, again = steps(), steps()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(first))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 5), (0, 4)])
def test_any_shape_and_the_mask_is_that_of_the_flat_tensor(shape):
    made = keep_mask(shape, 0.5, torch.tensor(4), CPU)
    assert made.shape == shape and made.dtype == torch.bool
    flat = keep_mask((max(made.numel(), 8),), 0.5, torch.tensor(4), CPU)
    assert torch.equal(made.flatten(), flat[: made.numel()])


def test_the_same_seed_gives_the_same_mask_whatever_the_generator_did():
    first = mask(0.5, 11)
    torch.rand(10)
    assert torch.equal(first, mask(0.5, 11))
    assert not torch.equal(first, mask(0.5, 12))


def test_a_mask_does_not_touch_its_seed():
    seed = torch.tensor(123)
    keep_mask((100,), 0.5, seed, CPU)
    assert seed.item() == 123


def test_seeds_follow_the_default_generator():
    torch.manual_seed(5)
    first = [draw_seed().item() for _ in range(3)]
    torch.manual_seed(5)
    assert [draw_seed().item() for _ in range(3)] == first
    assert len(set(first)) == 3
    assert all(0 <= seed < 2**63 for seed in first)


def test_a_probability_that_sixteen_bits_hold_is_exact():
    assert exact_drop_probability(0.25) == 0.25
    assert apply_keep_mask(torch.ones(64), 0.5, torch.tensor(0)).unique().tolist() == [0.0, 2.0]
