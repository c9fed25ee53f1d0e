import math

import pytest
import torch

from lorakit.layers import LowRankUpdate


def update(r=4, inside=64, out=32, scaling=0.5, p=0.0, **options):
    torch.manual_seed(0)
    return LowRankUpdate(torch.empty(r, inside), torch.empty(out, r), scaling, p, **options)


def test_a_linear_update_starts_kaiming_uniform_and_zero():
    made = update(r=64, inside=256)
    made.initialize_("kaiming", "B")
    # Uniform with a = sqrt(5): the bound is sqrt(6 / ((1 + 5) * in)) = 1 / sqrt(in).
    assert made.lora_A.abs().max() <= 1 / math.sqrt(256)
    assert made.lora_A.var().item() == pytest.approx(1 / (3 * 256), rel=0.05)
    assert made.lora_B.eq(0).all()


@pytest.mark.parametrize("zero", ["A", "B"])
def test_gaussian_has_standard_deviation_one_over_r(zero):
    made = update(r=16, inside=512, out=512)
    made.initialize_("gaussian", zero)
    drawn, silent = (made.lora_B, made.lora_A) if zero == "A" else (made.lora_A, made.lora_B)
    assert drawn.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert silent.eq(0).all()


def test_an_embedding_update_starts_with_a_zero_and_b_normal():
    made = update(r=16, inside=64, out=512)
    made.initialize_("kaiming", "A")
    assert made.lora_A.eq(0).all()
    assert made.lora_B.std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("zero", ["A", "B"])
def test_random_draws_both(zero):
    made = update()
    made.initialize_("random", zero)
    assert made.lora_A.ne(0).all() and made.lora_B.ne(0).all()


@pytest.mark.parametrize("zero", ["A", "B"])
def test_orthogonal_draws_both_and_their_product_is_zero(zero):
    made = LowRankUpdate(torch.empty(6, 40), torch.empty(30, 6), 2.0)
    made.initialize_("orthogonal", zero)
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
        one.initialize_("kaiming", "B")
    assert torch.equal(made.lora_A, again.lora_A)
    assert made.lora_A.requires_grad and made.lora_A.grad_fn is None


def test_a_term_draws_a_fresh_seed_in_training_only():
    made = update(p=0.5)
    first, second = made.term(), made.term()
    assert first.drop_probability == 0.5 and first.seed is not None
    assert first.seed.item() != second.seed.item()
    made.eval()
    assert made.term().drop_probability == 0 and made.term().seed is None


def test_no_dropout_draws_no_random_number():
    made = update()
    state = torch.get_rng_state()
    made.term()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_delta_weight_is_multiplied_in_float32(dtype):
    made = update()
    made.initialize_("random", "B")
    made.to(dtype)
    expected = 0.5 * made.lora_B.detach().float() @ made.lora_A.detach().float()
    assert made.delta_weight().dtype == torch.float32
    assert torch.allclose(made.delta_weight(), expected, rtol=1e-6, atol=1e-7)


def test_float64_factors_give_a_float64_delta_weight():
    made = update().double()
    assert made.delta_weight().dtype == torch.float64


def test_names_of_its_parameters_and_what_it_prints():
    made = update(p=0.1)
    assert [n for n, _ in made.named_parameters()] == ["lora_A", "lora_B"]
    assert made.r == 4
    assert repr(made) == "LowRankUpdate(r=4, scaling=0.5, dropout=0.1)"
    with_bias = LowRankUpdate(torch.empty(1, 2), torch.empty(3, 1), 1.0, bias=torch.zeros(3))
    assert [n for n, _ in with_bias.named_parameters()] == ["lora_A", "lora_B", "bias"]
    assert repr(with_bias) == "LowRankUpdate(r=1, scaling=1)"
