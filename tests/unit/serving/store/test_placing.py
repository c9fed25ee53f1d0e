"""Adapters enter and leave a model, and leave no trace if they cannot stay."""

import pytest
import torch

from lorakit import Adapter, active_adapters
from lorakit.errors import AdapterFileError, AdapterMismatchError
from lorakit.injection import adapter_names
from lorakit.serving.store.placing import Placing
from lorakit.serving.store.probe import Probe
from tiny_models import assert_untouched, distilbert, llama, snapshot
from tiny_models.adapted import with_adapter
from tiny_models.trained_tokens import with_tokens


def placing(model, dtype=None):
    return Placing(model, dtype, Probe(model))


def of(build, seed=7, **config):
    return Adapter.from_model(with_adapter(build, seed=seed, **config))


def test_one_enters_as_others_leave_and_none_acts_on_all_rows():
    model = llama()
    place = placing(model)
    place.exchange([], "a", "a-1", of(llama))
    place.exchange([], "b", "b-1", of(llama, seed=8, r=3))
    assert adapter_names(model) == ("a-1", "b-1") and active_adapters(model) == ()
    assert not any(p.requires_grad for p in model.parameters())
    place.exchange(["a-1", "b-1"], "a", "a-2", of(llama, seed=9))
    assert adapter_names(model) == ("a-2",)


def test_the_base_is_as_before_when_all_have_left():
    model = llama()
    before = snapshot(model)
    place = placing(model)
    place.exchange([], "a", "a-1", of(llama))
    place.remove(["a-1"])
    place.remove([])
    assert_untouched(model, before)


def test_one_of_another_base_names_the_first_key_with_both_shapes():
    model = llama()
    before = snapshot(model)
    other = of(lambda: llama(hidden_size=24, intermediate_size=40))
    with pytest.raises(
        AdapterMismatchError,
        match=r"Cannot serve adapter 'mine' on this base.*q_proj\.lora_A has shape \(2, 24\), but "
        r"the base's layer needs \(2, 16\)",
    ):
        placing(model).exchange([], "mine", "mine-1", other)
    assert_untouched(model, before)


def test_one_for_another_architecture_names_the_module():
    with pytest.raises(AdapterMismatchError, match=r"no module 'distilbert\.transformer\.layer"):
        placing(llama()).exchange([], "mine", "mine-1", of(distilbert))


def test_a_head_with_another_number_of_labels_is_refused_with_both_shapes():
    five = of(lambda: distilbert(num_labels=5))
    with pytest.raises(
        AdapterMismatchError, match=r"classifier\.weight has shape \(5, 16\), but the base's is \(2"
    ):
        placing(distilbert()).exchange([], "mine", "mine-1", five)


def test_more_tokens_than_the_base_are_refused():
    def larger():
        model = llama()
        model.resize_token_embeddings(40)
        return model

    adapter = Adapter.from_model(with_tokens(llama, (5, 36), model=larger()))
    with pytest.raises(
        AdapterMismatchError, match=r"'mine'.*vocabulary of 37 tokens, expected at most the 32"
    ):
        placing(llama()).exchange([], "mine", "mine-1", adapter)


def test_one_that_the_probe_refuses_does_not_stay():
    model = llama()
    place = placing(model)
    place.exchange([], "a", "a-1", of(llama))
    with pytest.raises(AdapterFileError, match="equal the base's"):
        place.exchange([], "b", "b-1", of(llama, scale=1e-12))
    assert adapter_names(model) == ("a-1",)
    assert active_adapters(model) == ()


def test_bytes_are_those_of_the_dtype_in_memory():
    assert placing(llama()).bytes_of(10) == 40
    half = llama().to(torch.bfloat16)
    assert placing(half).bytes_of(10) == 40  # factors in float32 on a base in half precision
    assert placing(half, torch.bfloat16).bytes_of(10) == 20


def test_factors_get_the_dtype_that_is_asked_for():
    model = llama()
    placing(model, torch.bfloat16).exchange([], "a", "a-1", of(llama))
    update = model.model.layers[0].self_attn.q_proj.updates["a-1"]
    assert update.lora_A.dtype == torch.bfloat16
