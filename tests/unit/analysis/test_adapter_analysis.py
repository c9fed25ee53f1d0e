"""What is measured of one adapter, and which rank it recommends."""

import pytest
import torch

from lorakit import LoraConfig, add_adapter
from lorakit.adapters import Adapter
from lorakit.analysis import analyze_adapter
from lorakit.errors import AdapterFileError, ConfigError
from tiny_models import gpt2, randomize_
from tiny_models.adapters import adapter_of, factors_with, layered_adapter, random_factors


def known_adapter():
    """Two modules of r = 4: energies 16, 3, 1, 0 (of 20) and 1, 1, 1, 1 (of 4)."""
    steep, _, _ = factors_with([4.0, 3**0.5, 1.0, 0.0], 10, 8)
    flat, _, _ = factors_with([1.0] * 4, 6, 5, seed=1)
    return adapter_of({"layers.0.steep": steep, "layers.0.flat": flat})


def test_how_low_the_rank_could_have_been():
    analysis = analyze_adapter(known_adapter(), energy=0.75)
    choice = analysis.rank_choice()
    # Pooled energies are 17, 4, 2, 1 of 24: rank 1 keeps 0.708, rank 2 keeps 0.875.
    assert (choice.share, choice.together, choice.everywhere) == (0.75, 2, 3)
    assert choice.kept_together == pytest.approx(21 / 24)
    assert choice.per_module == {"layers.0.steep": 1, "layers.0.flat": 3}
    assert analysis.parameters == 4 * (10 + 8) + 4 * (6 + 5)
    assert choice.parameters_together == 2 * (18 + 11)
    assert choice.parameters_everywhere == 3 * (18 + 11)
    assert choice.parameters_per_module == 18 + 3 * 11
    assert analysis.shares() == [0.75, 0.9, 0.99]


def test_a_higher_share_never_takes_a_lower_rank():
    analysis = analyze_adapter(layered_adapter())
    choices = [analysis.rank_choice(share) for share in (0.1, 0.5, 0.9, 0.99, 1.0)]
    for name in ("together", "everywhere", "parameters_per_module"):
        values = [getattr(choice, name) for choice in choices]
        assert values == sorted(values) and values[0] < values[-1]
    assert choices[-1].together == choices[-1].everywhere == 4
    assert all(choice.kept_together >= choice.share - 1e-9 for choice in choices)


def test_a_module_is_never_given_more_than_its_rank():
    factors = {"a": random_factors(2, 10, 10), "b": random_factors(5, 10, 10, seed=1)}
    analysis = analyze_adapter(adapter_of(factors, rank_pattern={"b": 5}))
    assert analysis.rank_choice(1.0).parameters_together == analysis.parameters == 7 * 20
    assert analysis.largest_r == 5


def test_modules_are_grouped_by_kind_in_the_adapters_order():
    analysis = analyze_adapter(layered_adapter(layers=3))
    assert {kind: len(per_module) for kind, per_module in analysis.kinds.items()} == {
        "q_proj": 3,
        "v_proj": 3,
    }
    assert [update.path for update in analysis.kinds["v_proj"]][2] == "model.layers.2.attn.v_proj"


def test_modules_that_never_learnt_are_reported_and_make_no_nan():
    A, B = random_factors(3, 8, 8)
    adapter = adapter_of({"layers.0.q": (A, B), "layers.1.q": (A, 0 * B)})
    analysis = analyze_adapter(adapter, {path: torch.randn(8, 8) for path in adapter.factors})
    assert analysis.zero_paths == ["layers.1.q"]
    assert analysis.rank_choice().per_module["layers.1.q"] == 0
    assert [found.path for found in analysis.amplifications] == ["layers.0.q"]


def test_an_adapter_that_was_never_trained_is_refused():
    model = gpt2()
    add_adapter(model, LoraConfig(r=2, target_modules=["c_attn", "wte"]))
    with pytest.raises(AdapterFileError) as caught:
        analyze_adapter(Adapter.from_model(model), name="fresh")
    assert str(caught.value).startswith(
        "Nothing to analyse in fresh: got ΔW = 0 in all 3 modules, expected a trained adapter."
    )


def test_amplification_wants_the_base_as_the_update_is_oriented():
    model = gpt2()
    add_adapter(model, LoraConfig(r=2, target_modules=["c_attn", "wte"]))
    adapter = Adapter.from_model(randomize_(model))
    weights = {path: torch.randn_like(adapter.delta_weight(path)) for path in adapter.factors}
    analysis = analyze_adapter(adapter, weights, seed=3)
    assert [found.path for found in analysis.amplifications] == list(adapter.factors)
    for found in analysis.amplifications:
        assert found.update_norm == pytest.approx(
            adapter.delta_weight(found.path).norm().item(), rel=1e-5
        )


@pytest.mark.parametrize("energy", [0, 1.5])
def test_the_share_is_checked_first(energy):
    with pytest.raises(ConfigError, match="No rank keeps this share in energy"):
        analyze_adapter(known_adapter(), energy=energy)
