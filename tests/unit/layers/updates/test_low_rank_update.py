import pytest
import torch

from lorakit.layers import LowRankUpdate


def update(r=4, inside=64, out=32, scaling=0.5, p=0.0, **options):
    torch.manual_seed(0)
    return LowRankUpdate(torch.empty(r, inside), torch.empty(out, r), scaling, p, **options)


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
    made.set_factors_(torch.randn(4, 64), torch.randn(32, 4))
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
