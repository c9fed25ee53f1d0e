"""Ranks and alphas by module, written as patterns."""

import torch

from lorakit import LoraConfig
from lorakit.adapters import combine
from lorakit.adapters.ranks import with_ranks, with_unit_scaling
from tiny_models.adapters import layered_adapter


def test_ranks_that_differ_between_layers_of_one_name_are_recorded_by_whole_paths():
    adapters = {"both": layered_adapter(layers=2), "one": layered_adapter(layers=1, r=3, seed=5)}
    made = combine(adapters, {"both": 1.0, "one": 1.0}, "cat")
    for path, (A, _) in made.factors.items():
        assert made.config.rank_for(path) == A.shape[0] == (7 if ".0." in path else 4)
        assert made.config.scaling_for(path) == 1
    assert made.config.rank_for("other." + next(iter(made.factors))) == made.config.r


def test_patterns_are_by_name_where_it_is_enough_and_scalings_are_alpha_over_r():
    start = LoraConfig(use_rslora=True, init_lora_weights="eva", eva_rho=3, lora_dropout=0.1)
    ranks = {"a.q": 4, "b.q": 4, "a.v": 2, "b.v": 3, "h.0": 2, "a.o": 4, "ab.v": 2}
    config = with_ranks(start, ranks, {path: 2 * r for path, r in ranks.items()})
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    assert (config.use_rslora, config.init_lora_weights, config.eva_rho) == (False, True, 2)
    assert config.rank_pattern == {r"^a\.v": 2, r"^b\.v": 3, r"^h\.0": 2, r"^ab\.v": 2}
    for path, r in ranks.items():
        assert config.rank_for(path) == r and config.scaling_for(path) == 2


def test_unit_scaling_keeps_the_ranks_also_of_stacked_factors():
    factors = {"q": (torch.ones(2, 8), torch.ones(8, 2)), "e": (torch.ones(5, 3, 8), torch.ones(1))}
    config = with_unit_scaling(LoraConfig(r=9, lora_alpha=3), factors)
    assert [(config.rank_for(path), config.scaling_for(path)) for path in "qe"] == [(2, 1), (3, 1)]
