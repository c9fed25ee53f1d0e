"""The state of a model with adapters: names, walks, and what is refused."""

import pytest
from torch import nn

from lorakit import LoraConfig, adapter_rows, add_adapter, merge_adapters, unload
from lorakit.errors import AdapterNameError, AdapterStateError
from lorakit.injection.state import (
    adapted_and_replaced_modules,
    base_modules,
    check_new_name,
    own_parameters,
    require_adapter,
    require_no_other_holder,
    require_unmerged,
    state_of,
)
from tiny_models import TinyNet, mixtral, tokens


def carrying(model=None, **options):
    model = model or TinyNet()
    add_adapter(model, LoraConfig(**{"r": 2, "task_type": "SEQ_CLS", "bias": "all"} | options))
    return model


@pytest.mark.parametrize("name", ["", "a.b", "a b", "-a", "ä", "keys", "training", "forward"])
def test_malformed_names(name):
    with pytest.raises(AdapterNameError) as caught:
        check_new_name(TinyNet(), name)
    said = f"{name!r} cannot name an adapter, expected letters, digits, '_'"
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("name", ["a", "A-1_b", "0", "_x", "default"])
def test_good_names(name):
    model = TinyNet()
    check_new_name(model, name)
    add_adapter(model, LoraConfig(r=1, task_type="SEQ_CLS"), name)
    assert model(**tokens(model)).shape == (2, 6, 3)


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(AdapterNameError, match="This TinyNet carries no adapter"):
        require_adapter(TinyNet(), "default")
    with pytest.raises(AdapterNameError, match=r"'defualt'; adapters here: default\..*'default'"):
        require_adapter(carrying(), "defualt")


def test_what_changes_adapters_waits_for_the_end_of_a_merge_and_of_rows():
    model = carrying(bias="none", task_type=None)
    require_unmerged(model, "add an adapter")
    with (
        pytest.raises(AdapterStateError, match="Cannot add an adapter inside adapter_rows"),
        adapter_rows(model, ["default"]),
    ):
        require_unmerged(model, "add an adapter")
    merge_adapters(model)
    with pytest.raises(AdapterStateError, match=r"Cannot add an adapter while .*'default'"):
        require_unmerged(model, "add an adapter")


def test_a_holder_above_or_below_is_found():
    inner = carrying()
    with pytest.raises(AdapterStateError, match=r"this Sequential: 0\.layers\.0\.up carries one"):
        require_no_other_holder(nn.Sequential(inner))
    with pytest.raises(AdapterStateError, match="this LoraLinear: it carries one"):
        require_no_other_holder(inner.layers[0]["up"])
    require_no_other_holder(inner)


@pytest.mark.parametrize("build", [TinyNet, mixtral])
def test_walks_see_the_base_alone(build):
    model = build()
    before = {path: id(module) for path, module in model.named_modules()}
    parameters = {id(parameter) for parameter in model.parameters()}
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear", bias="all"))
    assert {path: id(module) for path, module in base_modules(model)} == before
    assert set(own_parameters(model)) == parameters
    layers, replaced = adapted_and_replaced_modules(model)
    by_path = dict(model.named_modules())
    assert {id(one) for one in (*layers, *replaced)} == {
        id(by_path[path.partition(f".{kind}")[0]])
        for kind in ("updates", "trained_copies")
        for path in by_path
        if f".{kind}.default" in path
    }


def test_experts_are_walked_under_the_names_of_their_parameters():
    model = mixtral()
    experts = "model.layers.0.mlp.experts"
    config = LoraConfig(r=2, target_parameters=["experts.down_proj"], target_modules=["q_proj"])
    add_adapter(model, config)
    paths = [path for path, _ in base_modules(model) if path.startswith(experts)]
    assert paths[0] == experts and f"{experts}.down_proj" in paths
    layers, _ = adapted_and_replaced_modules(model)
    assert len(layers) == 4


def test_unload_gives_back_what_required_gradients():
    model = TinyNet()
    model.embed.weight.requires_grad_(False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    unload(carrying(model))
    assert state_of(model) is None
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_a_compiled_model_has_the_state_of_what_it_wraps():
    model, wrapper = carrying(), nn.Module()
    wrapper._orig_mod = model
    assert state_of(wrapper) is state_of(model) is not None
