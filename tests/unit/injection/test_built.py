"""Building an adapter leaves the model as it is; test_detached compares what is attached."""

import pytest
import torch

from lorakit import Adapter, LoraConfig, add_adapter
from lorakit.errors import AdapterMismatchError, DtypeError
from lorakit.injection.built import AdapterBuilder
from lorakit.layers import LowRankUpdate
from tiny_models import assert_untouched, distilbert, gpt2, llama, randomize_, snapshot
from tiny_models.adapted import CASES, with_adapter
from tiny_models.trained_tokens import BUILDS, with_tokens


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_model_stays_as_it_is_and_nothing_built_requires_gradients(case):
    build, config = case
    adapter = Adapter.from_model(with_adapter(build, seed=3, **config))
    model = build().eval()
    before = snapshot(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    built, injection = AdapterBuilder(model).build(adapter, "x")
    assert_untouched(model, before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    shared = {id(p) for p in model.parameters()}
    made = [each.update for each in built.updates] + [each.copy for each in built.copies]
    assert made and not any(
        p.requires_grad for one in made for p in one.parameters() if id(p) not in shared
    )
    assert len(injection().matches) == len(built.updates)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_trained_tokens_leave_the_model_as_it_is(build):
    adapter = Adapter.from_model(with_tokens(build, seed=3))
    model = build().eval()
    before = snapshot(model)
    built, _ = AdapterBuilder(model).build(adapter, "x")
    assert_untouched(model, before)
    assert built.copies


def test_the_report_equals_that_of_adding():
    adapter = Adapter.from_model(with_adapter(gpt2, seed=3, use_dora=True, bias="all"))
    added = add_adapter(gpt2().eval(), adapter, "x", trainable=False)
    _, described = AdapterBuilder(gpt2().eval()).build(adapter, "x")
    assert described() == added


def test_factors_of_the_right_dtype_are_shared_and_others_copied():
    adapter = Adapter.from_model(with_adapter(llama, seed=3))
    model = llama().eval()
    path, (A, _) = next(iter(adapter.factors.items()))

    def factor(dtype):
        built, _ = AdapterBuilder(model, dtype).build(adapter, "x")
        return next(each.update.lora_A for each in built.updates if each.path == path)

    assert factor(None).data_ptr() == A.data_ptr()
    half = factor(torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(half, A.to(torch.bfloat16))


def test_factors_measured_from_the_base_s_weight():
    """PEFT's PiSSA files hold factors whose first values follow from the weight."""
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    model = llama().eval()
    add_adapter(model, config)
    trained = Adapter.from_model(randomize_(model, seed=3))
    raw = trained.factors, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    adapter = Adapter(raw[1], raw[0])
    added, target = llama().eval(), llama().eval()
    add_adapter(added, adapter, "x", trainable=False)
    built, _ = AdapterBuilder(target).build(adapter, "x")
    layers = dict(added.named_modules())
    for each in built.updates:
        expected = layers[each.path].updates["x"]
        assert type(each.update) is type(expected)
        for one, other in zip(
            each.update.operand_factors(), expected.operand_factors(), strict=True
        ):
            assert torch.equal(one, other)


def test_what_does_not_fit_is_refused_as_when_it_is_added():
    adapter = Adapter.from_model(with_adapter(distilbert, seed=3))
    with pytest.raises(AdapterMismatchError, match="made for another base"):
        AdapterBuilder(llama().eval()).build(adapter, "x")
    with pytest.raises(DtypeError, match=r"got torch\.int64 for its factors"):
        AdapterBuilder(distilbert().eval(), torch.int64).build(adapter, "x")


def test_building_exchanges_nothing_that_running_layers_have_prepared():
    adapter = Adapter.from_model(with_adapter(llama, seed=3))
    model = llama().eval()
    before = LowRankUpdate.exchanges
    AdapterBuilder(model).build(adapter, "x")
    assert LowRankUpdate.exchanges == before


def of(build=llama, **config):
    return Adapter.from_model(with_adapter(build, **config))


@pytest.fixture
def builder():
    return AdapterBuilder(llama().eval())


def test_adapters_of_equal_settings_and_sizes_share_a_plan(builder):
    _, *first = builder.plan(of(seed=3))
    second = of(seed=4)
    tensors, plan, recorded = builder.plan(second)
    assert tensors is second and plan is first[0] and recorded is first[1]


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
def test_others_are_planned_as_if_they_were_the_first(builder, config):
    _, before, _ = builder.plan(of(seed=3))
    adapter = of(seed=4, **config)
    tensors, plan, recorded = builder.plan(adapter)
    assert plan is not before
    _, alone, recorded_alone = AdapterBuilder(builder._model).plan(adapter)
    assert recorded == recorded_alone
    assert [(site.path, site.r, site.scaling) for site in plan.sites] == [
        (site.path, site.r, site.scaling) for site in alone.sites
    ]
    assert plan.heads.keys() == alone.heads.keys()
    assert tensors.factors.keys() == adapter.factors.keys()


def test_values_that_the_plan_depends_on_are_looked_at_each_time(builder):
    adapter = of(seed=3, use_dora=True)
    assert builder.plan(adapter)[1] is not builder.plan(adapter)[1]


def test_what_does_not_fit_is_refused_after_one_that_fits(builder):
    builder.plan(of(seed=3))
    with pytest.raises(AdapterMismatchError, match="made for another base"):
        builder.plan(of(distilbert, seed=3))
    assert builder.plan(of(seed=5))[1].sites


def test_an_adapter_built_with_the_plan_of_another_has_its_own_factors(builder):
    first, second = of(seed=3), of(seed=4)
    builder.build(first, "x")
    built, _ = builder.build(second, "y")
    for each in built.updates:
        A, B = second.factors[each.path]
        assert torch.equal(each.update.lora_A, A) and torch.equal(each.update.lora_B, B)
