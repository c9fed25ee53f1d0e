"""What a layer keeps of its adapters between batches."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lorakit.layers import LoraLinear, LowRankUpdate
from lorakit.layers.executors.known_terms import KnownTerms

BLOCK = object()


@pytest.fixture
def layer():
    torch.manual_seed(0)
    adapted = LoraLinear.adapt_in_place(nn.Linear(6, 4))
    for r, name in enumerate("abc", start=1):
        adapted.updates[name] = LowRankUpdate(torch.randn(r, 6), torch.randn(4, r), 0.5)
    return adapted


def put(layer, name, update):
    """Give a layer another update, and let it know, as all code does."""
    layer.updates[name] = update
    layer.choose_executor()


def no_seed(_update):
    return None


def of(known, layer, names="ab", block=BLOCK):
    with torch.no_grad():
        return known.of(layer, list(names), no_seed, block)


def test_a_term_is_kept_until_its_own_update_changes(layer):
    known = KnownTerms()
    a, b = of(known, layer)
    assert a.slot != b.slot
    assert all(one is other for one, other in zip(of(known, layer), (a, b), strict=True))
    layer.updates["c"].scaling = 3.0  # of another adapter
    assert of(known, layer)[0] is a
    layer.updates["a"].scaling = 2.0
    changed, kept = of(known, layer)
    assert changed.term.scaling == 2.0 and changed.slot == a.slot
    assert kept is b


@pytest.mark.parametrize("how", ["data", "functional_call"])
def test_factors_that_are_exchanged_unseen_are_described_again(layer, how):
    known = KnownTerms()
    _, kept = of(known, layer)
    update, other = layer.updates["a"], torch.randn(1, 6)
    if how == "data":
        update.lora_A.data = other
    else:
        update._parameters["lora_A"] = nn.Parameter(other)
    layer.choose_executor()  # as each block of rows does
    changed, same = of(known, layer)
    assert changed.term.A is update.lora_A and same is kept
    assert changed.addresses[0] == other.data_ptr()


def test_an_adapter_that_left_frees_its_slot(layer):
    known = KnownTerms()
    a, b, _ = of(known, layer, "abc")
    del layer.updates["a"]
    of(known, layer, "bc")
    put(layer, "d", LowRankUpdate(torch.randn(2, 6), torch.randn(4, 2), 0.5))
    kept, new = of(known, layer, "bd")
    assert kept is b and new.slot == a.slot


def test_an_adapter_of_the_same_name_is_another(layer):
    known = KnownTerms()
    a, _ = of(known, layer)
    put(layer, "a", LowRankUpdate(torch.randn(2, 6), torch.randn(4, 2), 0.5))
    assert of(known, layer)[0].term.A is layer.updates["a"].lora_A is not a.term.A


def test_values_of_factors_that_are_copied_are_read_again_when_they_change(layer):
    layer.updates["a"].to(torch.float16)
    known = KnownTerms()
    a, _ = of(known, layer)
    assert of(known, layer)[0] is a
    with torch.no_grad():
        layer.updates["a"].lora_A.add_(1)
    assert of(known, layer)[0] is not a
    a, _ = of(known, layer)
    assert of(known, layer, block=object())[0] is not a


def test_an_update_with_dropout_is_described_each_time(layer):
    layer.updates["a"].drop_probability = 0.5
    layer.train()
    known = KnownTerms()
    seed = torch.tensor(1)
    with torch.no_grad():
        first = known.of(layer, ["a"], lambda _: seed, BLOCK)[0]
        second = known.of(layer, ["a"], lambda _: seed, BLOCK)[0]
    assert first is not second and first.slot == second.slot


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_begin_without(layer, copied):
    known = KnownTerms()
    of(known, layer)
    assert copied(known)._known == {}
