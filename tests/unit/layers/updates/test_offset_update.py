"""An update that is measured from its first factors."""

import copy
import pickle

import pytest
import torch

from lorakit.errors import AdapterMismatchError
from lorakit.layers import OffsetUpdate
from tolerances import largest_error


def update(dtype=torch.float64, r=3, inside=10, out=6, **options):
    torch.manual_seed(0)
    made = OffsetUpdate(
        torch.empty(r, inside, dtype=dtype), torch.empty(out, r, dtype=dtype), 0.5, **options
    )
    made.initialize_at_(torch.randn(r, inside), torch.randn(out, r))
    return made


def moved(made):
    with torch.no_grad():
        made.lora_A.add_(torch.randn_like(made.lora_A))
        made.lora_B.add_(torch.randn_like(made.lora_B))
    return made


def product(made):
    return made.scaling * (made.lora_B @ made.lora_A - made.initial_B @ made.initial_A)


def test_it_is_zero_at_the_start_to_the_last_bit():
    made = update(torch.float32)
    assert made.delta_weight().eq(0).all()
    A, B = made.operand_factors()
    assert (torch.randn(5, 10) @ A.T @ B.T).eq(0).all()
    assert made.lora_A.ne(0).all() and made.lora_B.ne(0).all()


def test_what_acts_what_is_saved_and_the_weight_are_the_same_product():
    made = moved(update())
    expected = product(made).detach()
    for A, B in (made.operand_factors(), made.saved_factors()):
        assert A.shape == (6, 10) and B.shape == (6, 6)
        assert largest_error(made.scaling * B @ A, expected) < 1e-12
    assert largest_error(made.delta_weight(), expected) < 1e-12
    assert made.saved_factors()[0].grad_fn is None


def test_gradients_are_those_of_the_formula():
    made = moved(update())
    weights = torch.randn(6, 10, dtype=torch.float64)
    A, B = made.operand_factors()
    got = torch.autograd.grad((weights * (B @ A)).sum(), [made.lora_A, made.lora_B])
    plain = (weights * (made.lora_B @ made.lora_A)).sum()
    for mine, expected in zip(
        got, torch.autograd.grad(plain, [made.lora_A, made.lora_B]), strict=True
    ):
        assert largest_error(mine, expected) < 1e-12


def test_small_changes_survive_sixteen_bits():
    """B A - B0 A0 in bfloat16 would lose a change a thousandth as large as the factors."""
    made = update(torch.float32, r=4, inside=64, out=64)
    with torch.no_grad():
        made.lora_B.add_(1e-3 * torch.randn_like(made.lora_B))
    exact = product(made).detach()
    A, B = (factor.bfloat16() for factor in made.operand_factors())
    assert largest_error(made.scaling * (B.float() @ A.float()), exact) < 0.02
    A, B = (factor.bfloat16() for factor in made.saved_factors())
    assert largest_error(made.scaling * (B.float() @ A.float()), exact) > 0.5


def test_loading_what_was_saved_gives_the_same_bits():
    made, other = moved(update(torch.float32)), update(torch.float32)
    other.load_factors_(*made.saved_factors())
    for name, tensor in made.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    with pytest.raises(AdapterMismatchError, match=r"lora_A \(4, 10\).*expected rank 6, twice"):
        made.load_factors_(torch.ones(4, 10), torch.ones(6, 4))


def test_without_a_start_it_is_an_ordinary_update():
    made = OffsetUpdate(torch.empty(2, 4), torch.empty(3, 2), 2.0)
    made.set_factors_(torch.randn(2, 4), torch.randn(3, 2))
    assert torch.allclose(made.delta_weight(), 2.0 * (made.lora_B @ made.lora_A))


def test_copies_and_moves_take_the_start_along():
    made = moved(update(torch.float32))
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other.delta_weight(), made.delta_weight())
    assert {t.dtype for t in made.to(torch.float64).operand_factors()} == {torch.float64}
    assert {name for name, _ in made.named_parameters()} == {"lora_A", "lora_B"}
    assert not made.keeps_saved_factors
