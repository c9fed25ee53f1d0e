"""The state of an adapted layer: which updates act, what computes it, and what a merge keeps."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lorakit import LoraConfig, add_adapter, merge_adapters
from lorakit.errors import AdapterStateError
from lorakit.layers import AdaptedLayer, LoraLinear, LowRankUpdate
from lorakit.layers.executors.per_row import PerRowAdapters
from lorakit.layers.executors.siblings import SiblingGroup
from lorakit.layers.executors.single import run_base, run_single


@pytest.fixture
def layer():
    layer = LoraLinear.adapt_in_place(nn.Linear(6, 4))
    for name in "ab":
        layer.updates[name] = LowRankUpdate(torch.randn(2, 6), torch.randn(4, 2), 0.5)
    return layer


def test_the_executor_follows_what_acts(layer):
    seen = [layer.executor]
    for names in (("a", "missing"), (), ("b",)):
        layer.activate(names)
        seen.append(layer.executor)
    assert seen == [run_base, run_single, run_base, run_single]
    layer.merge()
    assert layer.is_merged and layer.executor is run_base
    layer.unmerge()
    assert not layer.is_merged and layer.executor is run_single


def test_the_executor_of_groups_and_rows(layer):
    layer.activate(("a",))
    layer.siblings = group = SiblingGroup([layer])
    layer.choose_executor()
    assert layer.executor is group
    layer.per_row_adapters = rows = PerRowAdapters(["a", None])
    layer.choose_executor()
    assert layer.executor is rows and layer.acting_updates() == []
    del layer.per_row_adapters
    group.leave(layer)
    assert layer.executor is run_single and layer.siblings is None


def test_a_merge_can_be_made_again_or_for_good(layer):
    layer.activate(("a", "b"))
    base = layer.weight
    layer.merge()
    merged = layer.merged_parameters()
    layer.unmerge()
    assert layer.weight is base
    layer.merge_again(merged)
    assert layer.weight is merged["weight"][0] and layer.is_merged
    layer.keep_merged()
    assert not layer.is_merged and layer.weight is merged["weight"][0]


def test_a_weight_that_is_computed_cannot_be_merged():
    layer = LoraLinear.adapt_in_place(nn.Linear(3, 2))
    assert layer.merge_obstacle() is None
    vars(layer)["weight"] = layer._parameters.pop("weight").detach()  # by a hook
    assert "its weight is computed" in layer.merge_obstacle()
    model = nn.Sequential(weight_norm(nn.Linear(3, 2)))
    add_adapter(model, LoraConfig(r=1, target_modules=["0"]))
    with pytest.raises(AdapterStateError, match=r"its weight is computed .* a parametrization"):
        merge_adapters(model)


def test_a_kind_says_how_large_its_factors_are():
    assert LoraLinear.factor_shapes(nn.Linear(6, 4), 2) == ((2, 6), (4, 2))
    with pytest.raises(TypeError, match="does not say how large its factors are"):
        AdaptedLayer.factor_sizes(nn.Linear(1, 1))
