"""Adapters as task vectors."""

from dataclasses import replace

import pytest
import torch

from lorakit import Adapter, LoraConfig, add_adapter, merge_and_unload
from lorakit.adapters import negated_adapter, resize_adapter, scaled_adapter, summed_adapters
from lorakit.adapters.operations.arithmetic import relative_distance
from lorakit.errors import ConfigError
from tiny_models import TinyNet, logits, randomize_
from tiny_models.adapters import adapter_of, layered_adapter
from tolerances import TOLERANCE, largest_error

EXACT = TOLERANCE[torch.float32]


def test_the_distance_from_a_weighted_sum_is_that_of_the_products():
    first, second, third = (layered_adapter(seed=n, lora_alpha=3 + n) for n in range(3))
    path = next(iter(first.factors))
    second = replace(second, factors={path: second.factors[path]})
    terms = [(0.7, first), (-2.0, second)]
    zero = torch.zeros(24, 24)
    difference = whole = 0.0
    for name in first.factors:
        other = second.delta_weight(name) if name == path else zero
        exact = 0.7 * first.delta_weight(name) - 2 * other
        difference += (third.delta_weight(name) - exact).square().sum().item()
        whole += exact.square().sum().item()
    expected = (difference / whole) ** 0.5
    assert relative_distance(third, terms) == pytest.approx(expected, rel=1e-5)
    assert relative_distance(first, [(1.0, first)]) < 1e-6
    assert relative_distance(first, [(0.0, first)]) is None
    assert relative_distance(second, [(1.0, first)]) == pytest.approx(
        relative_distance(second, [(0.5, first), (0.5, first)])
    )


def test_the_distance_of_stacks_is_that_of_all_their_products():
    torch.manual_seed(0)
    first, second = (
        adapter_of(
            {"m.experts.down_proj": (torch.randn(4, 2, 16), torch.randn(4, 12, 2))},
            target_parameters=["experts.down_proj"],
        )
        for _ in range(2)
    )
    (path,) = first.factors
    exact = 0.7 * first.delta_weight(path) - 2 * second.delta_weight(path)
    expected = ((first.delta_weight(path) - exact).norm() / exact.norm()).item()
    distance = relative_distance(first, [(0.7, first), (-2.0, second)])
    assert distance == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("factor", [2.5, -1.0, 0.0])
def test_updates_are_scaled_and_settings_stay(factor):
    adapter = layered_adapter(use_rslora=True)
    made = scaled_adapter(adapter, factor)
    assert made.config == adapter.config
    for path in adapter.factors:
        expected = factor * adapter.delta_weight(path)
        assert torch.allclose(made.delta_weight(path), expected, atol=1e-4)


def test_the_sum_with_the_negation_is_zero():
    adapter = layered_adapter(lora_alpha=7)
    zero = summed_adapters(adapter, negated_adapter(adapter))
    for path in adapter.factors:
        scale = adapter.delta_weight(path).abs().max()
        assert (zero.delta_weight(path).abs().max() / scale).item() < EXACT


def task(seed, **config):
    model = TinyNet()
    add_adapter(model, LoraConfig(r=2, target_modules=["up", "down"], **config))
    return Adapter.from_model(randomize_(model, seed=seed))


def test_one_task_is_taken_from_merged_weights_and_another_added():
    first, second = task(1, lora_alpha=5), task(2, use_rslora=True)
    merged = TinyNet()
    add_adapter(merged, first)
    merged = merge_and_unload(merged)
    swap = summed_adapters(negated_adapter(first), second)
    add_adapter(merged, swap)
    merged = merge_and_unload(merged)
    expected = TinyNet()
    add_adapter(expected, second)
    assert largest_error(logits(merged), logits(expected)) < 2 * EXACT
    assert largest_error(logits(expected), logits(TinyNet())) > 0.01


def test_a_sum_can_be_brought_back_to_the_rank_of_its_parts():
    adapter = task(1)
    back = resize_adapter(summed_adapters(adapter, adapter), 2)
    assert back.error < 1e-6
    for path in adapter.factors:
        assert (
            largest_error(back.adapter.delta_weight(path), 2 * adapter.delta_weight(path)) < EXACT
        )


def test_a_factor_that_is_not_finite_and_an_empty_sum_are_refused():
    with pytest.raises(ConfigError, match="expected a finite number"):
        scaled_adapter(layered_adapter(), float("nan"))
    with pytest.raises(ConfigError, match="got no adapter"):
        summed_adapters()
