"""Adapters that were tried enter and leave a model."""

import torch

from lorakit import Adapter, active_adapters
from lorakit.injection import adapter_names
from lorakit.serving.store.placing import Placing
from lorakit.serving.store.trial import Trial
from tiny_models import assert_untouched, llama, snapshot
from tiny_models.adapted import with_adapter


def placing(model, dtype=None):
    return Placing(model, dtype)


def tried(model, name, adapter, dtype=None):
    """Return an adapter as a trial on a copy of the model returns it."""
    return Trial(model, dtype).pass_through(name, name, adapter).entering


def of(build, seed=7, **config):
    return Adapter.from_model(with_adapter(build, seed=seed, **config))


def test_one_enters_as_others_leave_and_none_acts_on_all_rows():
    model = llama()
    place = placing(model)
    place.enter(tried(model, "a-1", of(llama)))
    place.enter(tried(model, "b-1", of(llama, seed=8, r=3)))
    assert adapter_names(model) == ("a-1", "b-1") and active_adapters(model) == ()
    assert not any(p.requires_grad for p in model.parameters())
    place.remove(["a-1", "b-1"])
    place.enter(tried(model, "a-2", of(llama, seed=9)))
    assert adapter_names(model) == ("a-2",)


def test_the_base_is_as_before_when_all_have_left():
    model = llama()
    before = snapshot(model)
    place = placing(model)
    place.enter(tried(model, "a-1", of(llama)))
    place.remove(["a-1"])
    place.remove([])
    assert_untouched(model, before)


def test_bytes_are_those_of_the_dtype_in_memory():
    assert placing(llama()).bytes_of(10) == 40
    half = llama().to(torch.bfloat16)
    assert placing(half).bytes_of(10) == 40  # factors in float32 on a base in half precision
    assert placing(half, torch.bfloat16).bytes_of(10) == 20


def test_factors_get_the_dtype_that_is_asked_for():
    model = llama()
    placing(model, torch.bfloat16).enter(tried(model, "a-1", of(llama), torch.bfloat16))
    update = model.model.layers[0].self_attn.q_proj.updates["a-1"]
    assert update.lora_A.dtype == torch.bfloat16
