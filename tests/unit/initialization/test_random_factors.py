import math

import pytest
import torch

from lorakit.initialization import FreshUpdate, initialization_of
from lorakit.layers import LowRankUpdate


def update(r=4, inside=64, out=32, scaling=0.5, p=0.0, **options):
    torch.manual_seed(0)
    return LowRankUpdate(torch.empty(r, inside), torch.empty(out, r), scaling, p, **options)


def initialize_(update, value, zero_factor):
    initialization = initialization_of(value)
    initialization.write_(update, *initialization.factors(FreshUpdate(update, zero_factor)))


def test_a_linear_update_starts_kaiming_uniform_and_zero():
    made = update(r=64, inside=256)
    initialize_(made, True, "B")
    # Uniform with a = sqrt(5): the bound is sqrt(6 / ((1 + 5) * in)) = 1 / sqrt(in).
    assert made.lora_A.abs().max() <= 1 / math.sqrt(256)
    assert made.lora_A.var().item() == pytest.approx(1 / (3 * 256), rel=0.05)
    assert made.lora_B.eq(0).all()


@pytest.mark.parametrize("zero", ["A", "B"])
def test_gaussian_has_standard_deviation_one_over_r(zero):
    made = update(r=16, inside=512, out=512)
    initialize_(made, "gaussian", zero)
    normal, zeros = (made.lora_B, made.lora_A) if zero == "A" else (made.lora_A, made.lora_B)
    assert normal.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert zeros.eq(0).all()


def test_an_embedding_update_starts_with_a_zero_and_b_normal():
    made = update(r=16, inside=64, out=512)
    initialize_(made, True, "A")
    assert made.lora_A.eq(0).all()
    assert made.lora_B.std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("zero", ["A", "B"])
def test_random_draws_both(zero):
    made = update()
    initialize_(made, False, zero)
    assert made.lora_A.ne(0).all() and made.lora_B.ne(0).all()


@pytest.mark.parametrize("zero", ["A", "B"])
def test_orthogonal_draws_both_and_their_product_is_zero(zero):
    made = LowRankUpdate(torch.empty(6, 40), torch.empty(30, 6), 2.0)
    initialize_(made, "orthogonal", zero)
    assert made.lora_A.ne(0).all() and made.lora_B.ne(0).all()
    assert made.delta_weight().abs().max() < 1e-6
    # Half of the rank for each: together they span all of it.
    ranks = [torch.linalg.matrix_rank(factor).item() for factor in (made.lora_A, made.lora_B)]
    assert ranks == [3, 3]
    both = torch.cat([made.lora_A, made.lora_B.t()], dim=1)
    assert torch.linalg.matrix_rank(both) == 6
    assert made.lora_A.grad_fn is None


def test_initialization_follows_the_seed_and_leaves_no_graph():
    made, again = update(), update()
    for one in (made, again):
        torch.manual_seed(3)
        initialize_(one, True, "B")
    assert torch.equal(made.lora_A, again.lora_A)
    assert made.lora_A.requires_grad and made.lora_A.grad_fn is None


@pytest.mark.parametrize("value", [True, False, "gaussian", "orthogonal"])
def test_stacked_matrices_are_initialized_one_after_the_other(value):
    stacked = LowRankUpdate(torch.empty(3, 4, 10), torch.empty(3, 6, 4), 0.5)
    torch.manual_seed(1)
    initialize_(stacked, value, "B")
    torch.manual_seed(1)
    for A, B in zip(stacked.lora_A, stacked.lora_B, strict=True):
        single = LowRankUpdate(torch.empty(4, 10), torch.empty(6, 4), 0.5)
        initialize_(single, value, "B")
        assert torch.equal(single.lora_A, A) and torch.equal(single.lora_B, B)
