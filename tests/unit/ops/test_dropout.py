import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lorakit.ops import LowRankTerm, apply_keep_mask, draw_seed, low_rank_linear
from lorakit.ops.dropout_mask import exact_drop_probability, kernel_mask

MANY = 1 << 18


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


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5])
def test_kept_elements_are_divided_by_the_keep_probability(p):
    x = torch.ones(4096, dtype=torch.float64)
    out = apply_keep_mask(x, p, torch.tensor(2))
    keep = 1 - exact_drop_probability(p)
    assert sorted(set(out.tolist())) == [0.0, 1 / keep]
    assert abs(keep - (1 - p)) <= 0.5 / 65536


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
