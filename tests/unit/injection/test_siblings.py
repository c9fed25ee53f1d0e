"""Which layers are tried as a group, by their names and those of their parents."""

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter, delete_adapter, set_adapter
from lorakit.injection.state import adapted_layers
from tiny_models import bert, distilbert, llama, t5


def groups(model):
    """Return the groups of a model as paths of their members."""
    paths = {layer: path for path, layer in adapted_layers(model)}
    found = {}
    for layer in paths:
        if layer.siblings is not None:
            found[id(layer.siblings)] = [paths[member] for member in layer.siblings.members]
            assert layer in layer.siblings.members
    return [tuple(path.rpartition(".")[2] for path in members) for members in found.values()]


@pytest.mark.parametrize(
    ("build", "task", "expected"),
    [
        (llama, None, {("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")}),
        (bert, "TOKEN_CLS", {("query", "key", "value")}),
        (distilbert, "SEQ_CLS", {("q_lin", "k_lin", "v_lin")}),
    ],
)
def test_groups_of_common_models(build, task, expected):
    model = build()
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear", task_type=task))
    found = groups(model)
    assert set(found) == expected and len(found) == 2 * len(expected)


def test_the_query_of_a_cross_attention_is_on_its_own():
    model = t5()
    add_adapter(model, LoraConfig(r=2, target_modules=["q", "k", "v"]))
    assert sorted(groups(model)) == [("k", "v")] * 2 + [("q", "k", "v")] * 4
    for path, layer in adapted_layers(model):
        assert (layer.siblings is None) == ("EncDecAttention" in path and path.endswith(".q"))


def test_layers_that_are_not_adapted_are_left_out():
    model = llama()
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj", "gate_proj"]))
    assert groups(model) == [("q_proj", "v_proj")] * 2


def test_a_second_adapter_enlarges_groups_and_keeps_those_it_does_not_change():
    model = llama(num_hidden_layers=1)
    attention = model.model.layers[0].self_attn
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), "one")
    first = attention.q_proj.siblings
    add_adapter(model, LoraConfig(r=2, target_modules=["v_proj"]), "two")
    assert attention.q_proj.siblings is first
    add_adapter(model, LoraConfig(r=2, target_modules=["k_proj"]), "three")
    assert groups(model) == [("q_proj", "k_proj", "v_proj")]
    set_adapter(model, "one")
    delete_adapter(model, "three")
    assert groups(model) == [("q_proj", "v_proj")]


def test_layers_of_other_names_or_kinds_have_no_group():
    parent = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "k_proj": nn.Embedding(4, 4)})
    parent["down"] = nn.Linear(4, 4)
    model = nn.ModuleDict({"attention": parent, "q": nn.Linear(4, 4), "k": nn.Linear(4, 4)})
    targets = ["q_proj", "k_proj", "down", "q", "k"]
    add_adapter(model, LoraConfig(r=2, target_modules=targets))
    assert groups(model) == [("q", "k")]
    assert model["q"](torch.ones(4)).shape == (4,)
