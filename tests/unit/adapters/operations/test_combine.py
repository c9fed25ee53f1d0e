"""Several adapters combined into one, as values and on a model."""

import math
import re

import pytest
import torch

from lorakit import Adapter, LoraConfig, add_adapter, combine_adapters, merge_adapters
from lorakit.adapters import combine
from lorakit.adapters.operations.combine import METHODS
from lorakit.errors import (
    AdapterMismatchError,
    AdapterNameError,
    AdapterStateError,
    ConfigError,
    ShapeError,
)
from lorakit.injection import active_adapters, adapter_names
from tiny_models import TinyNet, assert_untouched, logits, randomize_, snapshot
from tiny_models.adapters import adapter_of, layered_adapter, random_factors
from tolerances import TOLERANCE, largest_error

EXACT = TOLERANCE[torch.float32]
SCALINGS = {
    "alpha = r": {},
    "alpha": {"lora_alpha": 7},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {"alpha_pattern": {"v_proj": 5, "layers.0.attn.q_proj": 2}},
}


def two(**config):
    adapters = {
        "a": layered_adapter(seed=1, **config),
        "b": layered_adapter(seed=2, use_rslora=True, lora_alpha=6),
    }
    return adapters, {"a": 0.7, "b": -0.4}


def weighted_sum(adapters, weights, path):
    parts = [
        weights[name] * one.delta_weight(path).double()
        for name, one in adapters.items()
        if path in one.factors
    ]
    return sum(parts)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_with_weight_one_is_the_identity(method, scaling):
    adapter = layered_adapter(**SCALINGS[scaling])
    keeps_all = {"density": 1.0} if method not in ("linear", "cat", "svd") else {}
    made = combine({"a": adapter}, {"a": 1.0}, method, **keeps_all)
    assert made.factors.keys() == adapter.factors.keys()
    for path in adapter.factors:
        assert largest_error(made.delta_weight(path), adapter.delta_weight(path)) < EXACT
        assert made.config.scaling_for(path) == 1


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("method", ["cat", "svd"])
def test_exact_methods_give_the_weighted_sum(method, scaling):
    adapters, weights = two(**SCALINGS[scaling])
    made = combine(adapters, weights, method, **({"rank": 8} if method == "svd" else {}))
    for path in made.factors:
        expected = weighted_sum(adapters, weights, path)
        assert made.factors[path][0].shape[0] == 8
        assert largest_error(made.delta_weight(path), expected) < EXACT


def test_svd_of_a_lower_rank_is_the_best_approximation():
    adapters, weights = two()
    made = combine(adapters, weights, "svd", rank=3)
    for path in made.factors:
        expected = weighted_sum(adapters, weights, path)
        u, s, vh = torch.linalg.svd(expected)
        best = u[:, :3] * s[:3] @ vh[:3]
        assert largest_error(made.delta_weight(path), best) < EXACT


def test_svd_takes_the_largest_rank_if_none_is_given():
    adapters = {"a": layered_adapter(r=2), "b": layered_adapter(r=5, seed=1)}
    made = combine(adapters, {"a": 1, "b": 1}, "svd")
    assert {A.shape[0] for A, _ in made.factors.values()} == {5} and made.config.r == 5


def test_linear_is_the_product_of_the_weighted_sums():
    adapters, weights = two(lora_alpha=8)
    made = combine(adapters, weights, "linear")
    path = "model.layers.1.attn.q_proj"
    (A1, B1), (A2, B2) = (adapters[name].factors[path] for name in "ab")
    w1, w2 = 0.7 * 8 / 4, 0.4 * 6 / 2
    expected = (math.sqrt(w1) * B1 + math.sqrt(w2) * B2) @ (math.sqrt(w1) * A1 - math.sqrt(w2) * A2)
    assert largest_error(made.delta_weight(path), expected) < EXACT


def test_a_module_that_one_adapter_lacks_counts_as_zero_and_ranks_are_recorded():
    both = layered_adapter(kinds=("q_proj", "v_proj"), target_modules=["q_proj", "v_proj"])
    one = layered_adapter(kinds=("q_proj",), r=2, seed=5, target_modules=["q_proj"])
    adapters, weights = {"both": both, "one": one}, {"both": 0.5, "one": 2.0}
    made = combine(adapters, weights, "cat")
    assert set(made.config.target_modules or ()) == set(both.factors)
    for path in both.factors:
        r = 6 if path.endswith("q_proj") else 4
        assert made.config.rank_for(path) == r == made.factors[path][0].shape[0]
        assert largest_error(made.delta_weight(path), weighted_sum(adapters, weights, path)) < EXACT


def test_a_sum_of_ranks_beyond_the_matrix_is_kept_exactly_in_fewer():
    adapters = {name: layered_adapter(r=4, width=6, seed=n) for n, name in enumerate("ab")}
    made = combine(adapters, {"a": 1, "b": 1}, "cat")
    for path, (A, _) in made.factors.items():
        assert A.shape[0] == 6
        assert (
            largest_error(made.delta_weight(path), weighted_sum(adapters, dict(a=1, b=1), path))
            < EXACT
        )


def test_half_precision_is_summed_and_kept_in_float32():
    factors = {"m": tuple(t.bfloat16() for t in random_factors(4, 20, 30))}
    adapter = adapter_of(factors, lora_alpha=3)
    made = combine({"a": adapter}, {"a": 1.0}, "linear")
    assert made.factors["m"][0].dtype == torch.float32
    assert largest_error(made.delta_weight("m"), adapter.delta_weight("m")) < EXACT


def test_a_combination_is_saved_and_read_with_the_same_updates(tmp_path):
    both = layered_adapter(kinds=("q_proj", "v_proj"))
    one = layered_adapter(kinds=("q_proj",), r=3, seed=5, target_modules=["q_proj"])
    made = combine({"both": both, "one": one}, {"both": 1, "one": 1}, "cat")
    made.save(tmp_path)
    again = Adapter.load(tmp_path)
    for path in made.factors:
        assert torch.equal(again.delta_weight(path), made.delta_weight(path))


def carrying(bias="none", **second):
    """Return a network with two adapters, of different alphas."""
    model = TinyNet()
    targets = ["up", "down", "embed"]
    add_adapter(model, LoraConfig(r=2, lora_alpha=5, target_modules=targets, bias=bias), "a")
    randomize_(model, seed=1)
    config = {"r": 2, "use_rslora": True, "target_modules": targets} | second
    add_adapter(model, LoraConfig(**config), "b")
    return randomize_(model, seed=2)


def test_on_a_model_the_combination_acts_as_the_weighted_sum():
    model = carrying()
    adapters = {name: Adapter.from_model(model, name) for name in "ab"}
    before = logits(model)
    injection = combine_adapters(model, {"a": 0.5, "b": 0.25}, "ab", "cat")
    assert injection.name == "ab" and active_adapters(model) == ("ab",)
    assert largest_error(logits(model), before) > 1e-3
    made = Adapter.from_model(model, "ab")
    assert {A.shape[0] for A, _ in made.factors.values()} == {4}
    for path in made.factors:
        expected = weighted_sum(adapters, {"a": 0.5, "b": 0.25}, path)
        assert largest_error(made.delta_weight(path), expected) < EXACT
    assert made.embeddings == {"embed"}
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".ab." in n)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_a_model(method):
    model = carrying()
    combine_adapters(model, {"a": 1, "b": 1}, "ab", method)
    assert adapter_names(model) == ("a", "b", "ab")


def test_the_sum_of_active_adapters_is_their_combination():
    from lorakit import set_adapter

    model = carrying()
    set_adapter(model, ["a", "b"])
    expected = logits(model)
    combine_adapters(model, {"a": 1, "b": 1}, "ab", "cat")
    assert largest_error(logits(model), expected) < 2 * EXACT


@pytest.mark.parametrize("name", ["x/y", "x.y", "", "a"])
def test_malformed_and_taken_names_are_refused(name):
    model = carrying()
    before = snapshot(model)
    with pytest.raises(AdapterNameError):
        combine_adapters(model, {"a": 1, "b": 1}, name)
    assert_untouched(model, before)


def test_an_adapter_that_is_not_there_and_a_merged_model_are_refused():
    model = carrying()
    with pytest.raises(AdapterNameError, match="No adapter is named 'c'"):
        combine_adapters(model, {"a": 1, "c": 1}, "ac")
    merge_adapters(model, "a")
    with pytest.raises(AdapterStateError, match="Cannot combine adapters while"):
        combine_adapters(model, {"a": 1, "b": 1}, "ab")


def test_what_cannot_be_combined_leaves_the_model_as_it_was():
    model = carrying(r=3)
    before = snapshot(model)
    with pytest.raises(AdapterMismatchError, match="rank 2 in a, 3 in b; this method needs one"):
        combine_adapters(model, {"a": 1, "b": 1}, "ab")
    assert_untouched(model, before)
    combine_adapters(model, {"a": 1, "b": 1}, "ab", "svd")


@pytest.mark.parametrize(
    "method,options,error,said",
    [
        ("lineer", {}, ConfigError, "Did you mean 'linear'?"),
        ("linear", {"density": 0.5}, ConfigError, "prunes nothing"),
        ("ties", {"density": 0.0}, ConfigError, "above 0 and at most 1"),
        ("ties", {"density": 1.5}, ConfigError, "above 0 and at most 1"),
        ("cat", {"rank": 4}, ConfigError, "determines the rank"),
        ("svd", {"rank": 0}, ConfigError, "whole number above 0"),
        ("svd", {"rank": 25}, ShapeError, "Use rank 24 or less"),
    ],
)
def test_options_out_of_range_are_refused(method, options, error, said):
    adapters, weights = two()
    with pytest.raises(error, match=re.escape(said)):
        combine(adapters, weights, method, **options)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), True])
def test_weights_that_are_no_numbers_are_refused(weight):
    with pytest.raises(ConfigError, match="expected a finite number"):
        combine({"a": layered_adapter()}, {"a": weight})


def test_nothing_and_forgotten_weights_are_refused():
    with pytest.raises(ConfigError, match="got no adapter"):
        combine({}, {})
    with pytest.raises(ConfigError, match="Give each adapter one weight"):
        combine({"a": layered_adapter()}, {"b": 1.0})
