"""The cross-entropy in C against torch in float64; vocabularies are those around its vectors."""

import pytest
import torch
from torch.nn import functional as F

from lorakit.ops.native import compiled_library, cross_entropy_kernel

VOCABULARIES = (1, 2, 31, 64, 65, 1000, 32_003)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def kernel():
    found = cross_entropy_kernel.load()
    if found is None:
        pytest.skip(f"no compiled products: {compiled_library.unavailable()}")
    return found


def strided(values, dtype):
    """Return rows that lie 3 elements apart in a tensor filled with NaN."""
    whole = torch.full((len(values), values.shape[1] + 3), torch.nan, dtype=dtype)
    part = whole[:, 2:-1]
    part.copy_(values)
    return part


def exact(logits, targets):
    leaf = logits.detach().double().requires_grad_()
    losses = F.cross_entropy(leaf, targets, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0.01, 8.0, 200.0])
def test_losses_and_gradient(kernel, vocabulary, dtype, size):
    targets = torch.randint(0, vocabulary, (9,))
    logits = strided(size * torch.randn(9, vocabulary), dtype)
    expected, gradient = exact(logits, targets)
    before = logits.clone()
    losses = kernel(logits, targets, replaces=False)
    assert torch.equal(logits, before) and losses.dtype == torch.float32
    rounding = 1e-6 * logits.abs().max().clamp_min(1.0)  # of the largest logit and of the sum
    assert ((losses - expected).abs() <= rounding).all()
    assert torch.equal(kernel(logits, targets, replaces=True), losses)
    half = 2**-8 * gradient.abs() if dtype == torch.bfloat16 else 0
    assert ((logits - gradient).abs() <= 5e-7 + half).all()


def test_each_share_is_as_close_as_float32_allows(kernel):
    """Small ones too: only below 1e-38 they are zero."""
    gaps = torch.linspace(-100.0, 0.0, 100_001)
    logits = torch.stack([torch.zeros_like(gaps), gaps], dim=1)
    kernel(logits, torch.zeros(len(gaps), dtype=torch.int64), replaces=True)
    expected = gaps.double().sigmoid()
    is_normal = gaps > -87
    assert ((logits[:, 1] - expected).abs() <= 3e-7 * expected)[is_normal].all()
    assert (logits[gaps < -88, 1] == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 17, 39])
def test_what_is_not_finite_stays_what_torch_makes_of_it(kernel, value, place):
    logits, targets = torch.randn(2, 40), torch.tensor([3, 3])
    logits[0, place] = value
    expected = F.cross_entropy(logits, targets, reduction="none")
    losses = kernel(logits, targets, replaces=True)
    torch.testing.assert_close(losses, expected, equal_nan=True)
    assert logits.isfinite().all() == expected.isfinite().all()


@pytest.mark.parametrize("target", [-100, -1, 40])
def test_a_target_outside_of_the_vocabulary(kernel, target):
    logits = torch.randn(3, 40)
    before = logits.clone()
    with pytest.raises(IndexError, match=f"Target {target} is out of bounds"):
        kernel(logits, torch.tensor([0, target, 0]), replaces=True)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()], ids=str)
def test_targets_that_are_not_one_for_each_row(kernel, shape):
    """The C would read, or write, beyond their end."""
    with pytest.raises(ValueError, match="expected a target for each row"):
        kernel(torch.randn(3, 40), torch.zeros(shape, dtype=torch.int64), replaces=True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8], ids=str)
def test_targets_may_be_short_integers_with_gaps(kernel, dtype):
    logits, targets = torch.randn(4, 40), torch.arange(8, dtype=dtype)[::2]
    expected = F.cross_entropy(logits, targets.long(), reduction="none")
    torch.testing.assert_close(kernel(logits, targets, replaces=False), expected)


def test_threads_change_nothing(kernel, two_threads):
    logits, targets = torch.randn(33, 500), torch.randint(0, 500, (33,))
    copy = logits.clone()
    found = kernel(logits, targets, replaces=True)
    torch.set_num_threads(1)
    assert torch.equal(kernel(copy, targets, replaces=True), found) and torch.equal(copy, logits)


def test_no_tokens(kernel):
    assert kernel(torch.randn(0, 7), torch.zeros(0, dtype=torch.int64), replaces=True).shape == (0,)
