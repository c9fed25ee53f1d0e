"""What "all-linear" leaves out, and the ranks that it lowers."""

import pytest
from torch import nn

from lorakit.config import LoraConfig
from lorakit.injection.selection.all_linear import (
    left_out_of_all_linear,
    untargeted_experts,
    with_lower_ranks,
)
from tiny_models import mixtral

GATE = {"up": nn.Linear(8, 8), "gate.0": nn.Linear(8, 1), "gate.00": nn.Linear(8, 3)}


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_small_layer_has_the_largest_rank_it_allows_and_the_scaling_of_the_others(use_rslora):
    config = LoraConfig(r=4, lora_alpha=6, use_rslora=use_rslora, alpha_pattern={"gate.00": 5})
    lower, lowered = with_lower_ranks(config, GATE)
    assert lowered == [("gate.0", 1), ("gate.00", 3)]
    assert [lower.rank_for(path) for path in GATE] == [4, 1, 3]
    for path in GATE:
        assert lower.scaling_for(path) == pytest.approx(config.scaling_for(path))


@pytest.mark.parametrize(
    "options",
    [{"r": 1}, {"r": 9}, {"r": 4, "rank_pattern": {r"gate\..*": 4}}],
    ids=["all fit", "none fits", "it was asked for"],
)
def test_ranks_that_are_meant_stay(options):
    config = LoraConfig(**options)
    assert with_lower_ranks(config, GATE) == (config, [])


def test_linear_layers_are_left_out_with_their_reasons():
    free = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Conv1d(2, 2, 1)}
    free["d"] = nn.MultiheadAttention(4, 2)
    bypassed = {"b": "it is read", "c": "it is read"}
    assert left_out_of_all_linear(LoraConfig(), free, bypassed) == {"b": "it is read"}
    with_magnitudes = left_out_of_all_linear(LoraConfig(use_dora=True), free, bypassed)
    assert with_magnitudes.keys() == {"b", "d"} and "no magnitude" in with_magnitudes["d"]


def test_experts_that_are_not_layers_are_named_with_what_adapts_them():
    free = {path: module for path, module in mixtral().named_modules() if "layers.1" not in path}
    experts = "model.layers.0.mlp.experts"
    found = dict(untargeted_experts(free, {f"{experts}.down_proj": None}))
    names = "['experts.gate_up_proj']"
    assert list(found) == [f"{experts}.gate_up_proj"]
    assert found[f"{experts}.gate_up_proj"].endswith(f"which target_parameters={names} adapts")
