"""Building an adapter leaves the model as it is; attached, it acts as if it had been added."""

import copy

import pytest
import torch
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    adapter_rows,
    add_adapter,
    delete_adapter,
    disable_adapters,
    set_adapter,
)
from lorakit.errors import (
    AdapterMismatchError,
    AdapterNameError,
    AdapterStateError,
    DtypeError,
)
from lorakit.injection import adapter_names
from lorakit.injection.detached import AdapterBuilder, adapter_in_place, attach_adapter
from lorakit.layers import LowRankUpdate
from tiny_models import (
    assert_untouched,
    distilbert,
    gpt2,
    llama,
    mixtral,
    randomize_,
    snapshot,
    tokens,
)
from tiny_models.adapted import CASES, with_adapter
from tiny_models.trained_tokens import BUILDS, with_tokens


def detached(model, adapter, name="x"):
    """Return an adapter that was built for a model."""
    return AdapterBuilder(model).build(adapter, name)[0]


def rows(model, *names):
    """Return the output of one batch whose rows are alike but for their adapters."""
    inputs = {key: value[:1].repeat(len(names), 1) for key, value in tokens(model).items()}
    with torch.no_grad(), adapter_rows(model, names):
        return model(**inputs)[0]


def compare(build, adapter, other):
    """Fail if attaching gives other bits than adding, beside another adapter."""
    added, attached = build().eval(), build().eval()
    for model in (added, attached):
        add_adapter(model, other, "other", trainable=False)
        set_adapter(model, None)
    add_adapter(added, adapter, "x", trainable=False)
    set_adapter(added, None)
    attach_adapter(attached, detached(build().eval(), adapter))
    expected = rows(added, None, "x", "other")
    assert torch.equal(rows(attached, None, "x", "other"), expected)
    assert not torch.equal(expected[0], expected[1])
    set_adapter(added, "x")
    set_adapter(attached, "x")
    inputs = tokens(added)
    assert torch.equal(attached(**inputs)[0], added(**inputs)[0])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_adapters_of_every_kind(case):
    build, config = case
    adapters = [Adapter.from_model(with_adapter(build, seed=s, **config)) for s in (3, 4)]
    compare(build, *adapters)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_trained_tokens(build):
    compare(build, *(Adapter.from_model(with_tokens(build, seed=s)) for s in (3, 4)))


def test_dora():
    made = [Adapter.from_model(with_adapter(llama, seed=s, use_dora=True)) for s in (3, 4)]
    compare(llama, *made)


def test_stacked_experts():
    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.gate_up_proj"])
    models = [mixtral().eval() for _ in range(3)]
    add_adapter(models[0], config)
    adapter = Adapter.from_model(randomize_(models[0], seed=3))
    add_adapter(models[1], adapter, "x", trainable=False)
    attach_adapter(models[2], detached(mixtral().eval(), adapter))
    set_adapter(models[2], "x")
    inputs = tokens(models[1])
    assert torch.equal(models[2](**inputs)[0], models[1](**inputs)[0])


class Biased(nn.Module):
    """A module with a bias and a child that another part of the same adapter updates."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.bias = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.inner(x) + self.bias


def biased():
    torch.manual_seed(0)
    return nn.Sequential(Biased()).eval()


def test_a_copy_that_shares_children_gets_those_of_its_new_model():
    source = biased()
    add_adapter(source, LoraConfig(r=2, target_modules=["inner"], bias="all"), "x")
    randomize_(source, seed=3)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    expected = source(x).detach()
    set_adapter(source, None)
    target = biased()
    attach_adapter(target, adapter_in_place(source, "x"))
    set_adapter(target, "x")
    assert torch.equal(target(x), expected)
    target[0].inner.updates["x"].scaling = 0.0  # of the target's own child
    assert not torch.equal(target(x), expected)


def test_nothing_stays_where_it_was_and_where_it_leaves_again():
    source, target = gpt2().eval(), gpt2().eval()
    before = snapshot(source), snapshot(target)
    adapter = Adapter.from_model(with_adapter(gpt2, bias="all"))
    one = detached(source, adapter)
    attach_adapter(target, one)
    assert adapter_names(target) == ("x",)
    delete_adapter(target, "x")
    source.requires_grad_(True)
    assert_untouched(source, before[0])
    assert_untouched(target, before[1])


def test_it_does_not_act_before_it_is_chosen():
    target = llama().eval()
    before = target(**tokens(target)).logits
    attach_adapter(target, detached(llama().eval(), Adapter.from_model(with_adapter(llama))))
    assert torch.equal(target(**tokens(target)).logits, before)
    with disable_adapters(target):
        assert torch.equal(target(**tokens(target)).logits, before)


def test_a_name_that_is_taken_is_refused():
    adapter = Adapter.from_model(with_adapter(llama))
    target = with_adapter(llama, name="x")
    with pytest.raises(AdapterNameError, match="'x' is already there"):
        attach_adapter(target, detached(llama(), adapter))
    assert adapter_names(target) == ("x",)


def test_one_that_cannot_be_attached_leaves_no_trace():
    target = llama().eval()
    one = detached(llama().eval(), Adapter.from_model(with_adapter(llama)))
    target.model.layers[1].mlp = nn.Identity()
    before = snapshot(target)
    with pytest.raises(AttributeError, match="gate_proj"):
        attach_adapter(target, one)
    assert_untouched(target, before)


def test_not_inside_a_block_of_rows():
    model = with_adapter(llama)
    one = detached(llama(), Adapter.from_model(with_adapter(llama)))
    refused = pytest.raises(AdapterStateError, match="Cannot attach an adapter inside adapter_rows")
    with adapter_rows(model, ["default"]), refused:
        attach_adapter(model, one)


def test_the_model_can_be_copied_afterwards():
    target = llama().eval()
    attach_adapter(target, detached(llama().eval(), Adapter.from_model(with_adapter(llama))))
    twin = copy.deepcopy(target)
    set_adapter(twin, "x")
    set_adapter(target, "x")
    assert torch.equal(twin(**tokens(twin)).logits, target(**tokens(target)).logits)


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
