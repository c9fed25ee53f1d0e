"""Adapters brought to another rank, and what it costs."""

import re

import pytest
import torch

from lorakit import Adapter, LoraConfig, add_adapter
from lorakit.adapters import resize_adapter
from lorakit.errors import AdapterFileError, ConfigError, ShapeError
from tiny_models import TinyNet, randomize_, train_steps
from tiny_models.adapters import adapter_of, factors_with, layered_adapter, random_factors
from tolerances import TOLERANCE, largest_error

EXACT = TOLERANCE[torch.float32]


@pytest.mark.parametrize("config", [{}, {"lora_alpha": 7}, {"use_rslora": True}])
@pytest.mark.parametrize("r", [1, 3, 4, 9])
def test_the_result_is_the_best_approximation_and_its_error_is_reported(r, config):
    adapter = layered_adapter(**config)
    made = resize_adapter(adapter, r)
    lost = whole = 0.0
    for path in adapter.factors:
        delta = adapter.delta_weight(path).double()
        u, s, vh = torch.linalg.svd(delta)
        best = u[:, :r] * s[:r] @ vh[:r]
        got = made.adapter.delta_weight(path)
        assert largest_error(got, best) < EXACT
        expected = ((delta - best).norm() / delta.norm()).item() if r < 4 else 0.0
        assert made.errors[path] == pytest.approx(expected, abs=1e-7)
        assert made.adapter.factors[path][0].shape[0] == r == made.adapter.config.rank_for(path)
        lost, whole = lost + (delta - best).norm().item() ** 2, whole + delta.norm().item() ** 2
    expected = (lost / whole) ** 0.5 if r < 4 else 0.0
    assert made.error == pytest.approx(expected, abs=1e-7)


def test_known_singular_values_give_a_known_error():
    factors, _, _ = factors_with([4.0, 2.0, 1.0, 2.0], 12, 9)
    made = resize_adapter(adapter_of({"m": factors}), 1)
    assert made.errors == {"m": pytest.approx(9**0.5 / 5)}
    assert made.adapter.factors["m"][0].dtype == torch.float64


def test_a_larger_rank_can_be_trained_further():
    model = TinyNet()
    add_adapter(model, LoraConfig(r=2, target_modules=["up", "embed"]))
    randomize_(model)
    grown = resize_adapter(Adapter.from_model(model), 5).adapter
    other = TinyNet()
    add_adapter(other, grown)
    train_steps(other, steps=2)
    after = Adapter.from_model(other)
    for path, (A, B) in after.factors.items():
        assert torch.linalg.matrix_rank(B @ A) == 5, path


def test_modules_of_an_update_of_zero_stay_zero():
    A, B = random_factors(4, 10, 8)
    made = resize_adapter(adapter_of({"m": (A, 0 * B)}), 2)
    assert made.errors == {"m": 0.0} and made.error == 0.0
    assert not made.adapter.delta_weight("m").any()


def test_patterns_give_way_to_one_rank_and_heads_are_kept():
    plain = layered_adapter(alpha_pattern={"v_proj": 2}, use_rslora=True)
    head = {"classifier.weight": torch.ones(2, 24)}
    adapter = Adapter(plain.config, plain.factors, head, base_model="x")
    made = resize_adapter(adapter, 2).adapter
    assert made.config.rank_pattern == made.config.alpha_pattern == {}
    assert (made.config.r, made.config.lora_alpha, made.config.use_rslora) == (2, 2, False)
    assert made.replaced == head and made.base_model == "x"


def test_a_rank_beyond_the_matrix_is_refused_and_named():
    adapter = adapter_of({"a": random_factors(2, 5, 9), "b": random_factors(2, 30, 30)})
    with pytest.raises(ShapeError, match=re.escape("got rank 6") + r".*a \(5\)\. Use rank 5"):
        resize_adapter(adapter, 6)


@pytest.mark.parametrize("r", [0, -1, 2.5, True, "4"])
def test_ranks_that_are_no_whole_numbers_are_refused(r):
    with pytest.raises(ConfigError, match="expected a whole number above 0"):
        resize_adapter(layered_adapter(), r)


def test_numbers_that_are_not_finite_are_refused():
    A, B = random_factors(2, 4, 4)
    B[0, 0] = float("inf")
    with pytest.raises(AdapterFileError, match="Cannot resize the adapter: m has NaN or infinite"):
        resize_adapter(adapter_of({"m": (A, B)}), 1)
