"""Adapters that are alike share one plan, and all others get their own."""

import pytest
import torch

from lorakit import Adapter
from lorakit.errors import AdapterMismatchError
from lorakit.injection.built import build_adapter
from lorakit.injection.plans import Plans
from tiny_models import distilbert, llama
from tiny_models.adapted import with_adapter


def of(build=llama, **config):
    return Adapter.from_model(with_adapter(build, **config))


@pytest.fixture
def plans():
    return Plans(llama().eval())


def test_adapters_of_equal_settings_and_sizes_share_a_plan(plans):
    _, first = plans.of(of(seed=3))
    second = of(seed=4)
    tensors, planned = plans.of(second)
    assert tensors is second and planned is first


@pytest.mark.parametrize(
    "config",
    [
        {"r": 3},
        {"lora_alpha": 7},
        {"target_modules": ["q_proj"]},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_others_are_planned_as_if_they_were_the_first(plans, config):
    _, before = plans.of(of(seed=3))
    adapter = of(seed=4, **config)
    tensors, planned = plans.of(adapter)
    assert planned is not before
    _, alone = Plans(plans._model).of(adapter)
    assert planned.recorded == alone.recorded
    assert [(site.path, site.r, site.scaling) for site in planned.plan.sites] == [
        (site.path, site.r, site.scaling) for site in alone.plan.sites
    ]
    assert planned.plan.heads.keys() == alone.plan.heads.keys()
    assert tensors.factors.keys() == adapter.factors.keys()


def test_values_that_the_plan_depends_on_are_looked_at_each_time(plans):
    adapter = of(seed=3, use_dora=True)
    assert plans.of(adapter)[1] is not plans.of(adapter)[1]


def test_what_does_not_fit_is_refused_after_one_that_fits(plans):
    plans.of(of(seed=3))
    with pytest.raises(AdapterMismatchError, match="made for another base"):
        plans.of(of(distilbert, seed=3))
    assert plans.of(of(seed=5))[1].plan.sites


def test_an_adapter_built_with_the_plan_of_another_has_its_own_factors(plans):
    first, second = of(seed=3), of(seed=4)
    build_adapter(plans._model, first, "x", plans=plans)
    built, _ = build_adapter(plans._model, second, "y", plans=plans)
    for each in built.updates:
        A, B = second.factors[each.path]
        assert torch.equal(each.update.lora_A, A) and torch.equal(each.update.lora_B, B)
