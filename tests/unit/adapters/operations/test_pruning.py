"""Pruned task vectors, and the signs that several of them elect."""

import pytest
import torch

from lorakit.adapters import combine
from lorakit.adapters.operations.pruning import elect_signs, keep_largest
from tiny_models.adapters import adapter_of, layered_adapter, random_factors
from tolerances import TOLERANCE, largest_error

EXACT = TOLERANCE[torch.float32]


def test_ties_elects_signs_by_hand():
    A = torch.eye(1)
    columns = {"a": [4.0, -3.0, 1.0, 0.5], "b": [2.0, 5.0, -0.25, 3.0]}
    adapters = {
        name: adapter_of({"m": (A, torch.tensor(values)[:, None])})
        for name, values in columns.items()
    }
    made = combine(adapters, {"a": 1.0, "b": 1.0}, "ties_svd", density=0.5)
    # Half kept: a = 4 -3 0 0, b = 0 5 0 3; signs + + + +; means of those that agree: 4 5 0 3.
    expected = torch.tensor([[4.0], [5.0], [0.0], [3.0]])
    assert largest_error(made.delta_weight("m"), expected) < EXACT


def test_the_frequency_of_signs_can_decide_instead_of_their_sum():
    values = {"a": 9.0, "b": -1.0, "c": -2.0}
    adapters = {
        n: adapter_of({"m": (torch.eye(1), torch.tensor([[v]]))}) for n, v in values.items()
    }
    ones = dict.fromkeys(values, 1.0)
    total = combine(adapters, ones, "ties_svd", density=1.0)
    assert total.delta_weight("m").item() == pytest.approx(9)
    often = combine(adapters, ones, "ties_svd", density=1.0, majority_sign="frequency")
    assert often.delta_weight("m").item() == pytest.approx(-1.5)


def test_dare_keeps_the_mean_and_is_repeated_by_its_seed():
    wide = adapter_of({"m": random_factors(2, 200, 300)})
    make = lambda seed: combine(  # noqa: E731
        {"a": wide}, {"a": 1.0}, "dare_linear", density=0.25, seed=seed
    )
    first, again, other = make(1), make(1), make(2)
    assert torch.equal(first.factors["m"][0], again.factors["m"][0])
    assert not torch.equal(first.factors["m"][0], other.factors["m"][0])
    B = torch.stack([make(seed).factors["m"][1] for seed in range(200)])
    kept = (B != 0).double().mean().item()
    assert kept == pytest.approx(0.25, abs=0.01)
    assert largest_error(B.mean(0), wide.factors["m"][1]) < 0.5
    assert (B.mean(0) - wide.factors["m"][1]).mean().abs() < 0.01


def test_magnitude_pruning_keeps_the_largest():
    adapter = layered_adapter()
    made = combine({"a": adapter}, {"a": 1.0}, "magnitude_prune", density=0.25)
    for path, pair in made.factors.items():
        for got, expected in zip(pair, adapter.factors[path], strict=True):
            limit = expected.abs().flatten().sort().values[-got.numel() // 4]
            assert torch.allclose(got, expected * (expected.abs() >= limit), atol=1e-6)


def test_the_number_of_elements_kept_is_rounded_down_and_the_weights_count():
    tensor = torch.tensor([[3.0, -1.0], [2.0, -4.0]])
    assert keep_largest(tensor, 0.74).tolist() == [[3.0, 0.0], [0.0, -4.0]]
    assert keep_largest(tensor, 1.0) is tensor
    columns = [torch.tensor([4.0, -1.0, 0.0]), torch.tensor([2.0, 3.0, 0.0])]
    assert elect_signs(columns, [2.0, 0.5], "total").tolist() == [4.5, 1.5, 0.0]
