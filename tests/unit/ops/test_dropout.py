import itertools
import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lorakit.ops import LowRankTerm, apply_keep_mask, draw_seed, keep_mask, low_rank_linear
from lorakit.ops.dropout_mask import exact_drop_probability, kernel_mask

CPU = torch.device("cpu")
MANY = 1 << 18


def mask(p, seed, shape=(MANY,)):
    return keep_mask(shape, p, torch.tensor(seed), CPU)


def splitmix64(position):
    """Return the 64-bit hash in Python's own integers (Steele, Lea and Flood 2014, figure 16)."""
    word = (1 << 64) - 1
    z = position * 0x9E3779B97F4A7C15 & word
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & word
    z = (z ^ z >> 27) * 0x94D049BB133111EB & word
    return z ^ z >> 31


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


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].item()


@pytest.mark.parametrize("other", [1, 2, 1 << 20, 1 << 62])
def test_masks_of_different_seeds_are_independent(other):
    assert abs(correlation(mask(0.5, 0), mask(0.5, other))) < 4.5 / math.sqrt(MANY)


@pytest.mark.parametrize("width", [64, 100, 101])
def test_rows_and_columns_are_independent(width):
    rows = mask(0.5, 3, (MANY // width, width))
    assert abs(correlation(rows[:-1].flatten(), rows[1:].flatten())) < 4.5 / math.sqrt(MANY)
    assert abs(correlation(rows[:, :-1].flatten(), rows[:, 1:].flatten())) < 4.5 / math.sqrt(MANY)


def assert_binomial(shares, p, n):
    """Compare K shares of n elements with independent draws, within 5 sigma (1 in 1,700,000).

    One share has the variance v = p (1 - p) / n, so the mean of K is off by sqrt(v / K). Their
    variance is off by a factor of sqrt((kurtosis - 1) / K); a binomial's kurtosis is
    3 + (1 - 6 p (1 - p)) / (n p (1 - p)).
    """
    K, q = len(shares), p * (1 - p)
    assert abs(shares.mean() - (1 - p)) < 5 * math.sqrt(q / n / K)
    factor = math.sqrt((2 + (1 - 6 * q) / (n * q)) / K)
    assert abs(shares.var() / (q / n) - 1) < 5 * factor


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


def test_scale_and_keep_probability_of_every_lane_value_cancel():
    # Of 65,536 lane values those from the threshold on are kept. Their share is exact in binary,
    # and 1 / share is rounded once: to float64 in torch's operations, to float32 in a kernel's.
    for lanes in range(65536):
        p = lanes / 65536
        made = kernel_mask(p, torch.tensor(0))
        keep = (2**15 - made.threshold) / 65536
        assert keep == 1 - exact_drop_probability(p) == 1 - p
        assert abs(1 / keep * keep - 1) <= 2**-53
        assert abs(made.scale * keep - 1) <= 2**-24


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_expectation_of_what_is_applied_is_x(p, dtype):
    # An element is 0 or x / keep, so its variance is x² p / (1 - p); here over K masks.
    K = 2000
    torch.manual_seed(4)
    x = torch.linspace(-2, 2, 41, dtype=dtype)
    mean = sum(apply_keep_mask(x, p, draw_seed()).double() for _ in range(K)) / K
    sigma = x.double().abs() * math.sqrt(p / (1 - p) / K)
    assert ((mean - x).abs() <= 5 * sigma).all()


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


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5])
def test_kept_elements_are_divided_by_the_keep_probability(p):
    x = torch.ones(4096, dtype=torch.float64)
    out = apply_keep_mask(x, p, torch.tensor(2))
    keep = 1 - exact_drop_probability(p)
    assert sorted(set(out.tolist())) == [0.0, 1 / keep]
    assert abs(keep - (1 - p)) <= 0.5 / 65536


def test_a_probability_that_sixteen_bits_hold_is_exact():
    assert exact_drop_probability(0.25) == 0.25
    assert apply_keep_mask(torch.ones(64), 0.5, torch.tensor(0)).unique().tolist() == [0.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.05, 0.1])
def test_dropout_keeps_the_mean_in_every_dtype(dtype, p):
    # 1 / (1 - p) rounded to bfloat16 is off by up to 0.2 %, which would bias every output.
    x = torch.linspace(0.5, 1.5, MANY).to(dtype)
    out = apply_keep_mask(x, p, torch.tensor(3))
    assert out.dtype == dtype
    kept = out != 0
    ratio = (out[kept].double().sum() / x[kept].double().sum()).item()
    assert ratio == pytest.approx(1 / (1 - exact_drop_probability(p)), rel=2e-4)


def test_variance_is_that_of_inverted_dropout():
    out = apply_keep_mask(torch.ones(MANY, dtype=torch.float64), 0.25, torch.tensor(3))
    assert out.var().item() == pytest.approx(0.25 / 0.75, rel=0.02)


def test_non_contiguous_input_gets_the_mask_of_its_positions():
    x = torch.rand(6, 10) + 1
    seed = torch.tensor(8)
    transposed = x.t().contiguous().t()
    assert not transposed.is_contiguous()
    assert torch.equal(apply_keep_mask(transposed, 0.5, seed), apply_keep_mask(x, 0.5, seed))


def test_backward_uses_the_mask_of_forward():
    torch.manual_seed(0)
    A, B = torch.eye(8), torch.eye(8)
    x = torch.rand(50, 8) + 1
    x.requires_grad_()
    h = low_rank_linear(x, torch.zeros(8, 8), None, [LowRankTerm(A, B, 1.0, 0.5, draw_seed())])
    h.sum().backward()
    assert torch.equal(h != 0, x.grad != 0)


def test_gradient_checkpointing_repeats_the_mask():
    x = (torch.rand(50, 8) + 1).requires_grad_()
    A, B = torch.eye(8).requires_grad_(), torch.eye(8).requires_grad_()
    seen = []

    def layer(x):
        seed = draw_seed()
        seen.append(seed.item())
        return low_rank_linear(x, torch.zeros(8, 8), None, [LowRankTerm(A, B, 1.0, 0.5, seed)])

    h = checkpoint(layer, x, use_reentrant=False)
    torch.rand(3)  # the generator moves on before backward
    h.sum().backward()
    assert len(seen) == 2 and seen[0] == seen[1]
    assert torch.equal(h != 0, x.grad != 0)
