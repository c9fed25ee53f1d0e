"""Adapters are tried on a copy of a model, which itself stays as it is."""

import threading

import pytest
import torch

from lorakit import Adapter, set_adapter
from lorakit.errors import AdapterMismatchError
from lorakit.injection import adapter_names
from lorakit.injection.detached import attach_adapter
from lorakit.injection.state import take_over_quantized
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.serving.store.trial import Trial
from tiny_models import assert_untouched, bert, distilbert, gpt2, llama, snapshot, t5, tokens
from tiny_models.adapted import with_adapter
from tiny_models.quantized import EIGHT, FOUR, quantized
from tiny_models.trained_tokens import with_tokens


def of(build, seed=7, **config):
    return Adapter.from_model(with_adapter(build, seed=seed, **config))


def tried(trial, adapter):
    return trial.pass_through("mine", "mine-1", adapter)


def held_by(model):
    """Return the address of each parameter and buffer by name."""
    return {
        name: tensor.data_ptr()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }


@pytest.mark.parametrize("build", [llama, gpt2, bert, t5])
def test_a_copy_has_other_modules_over_the_same_tensors(build):
    model = build().eval()
    copy = copy_over_same_weights(model)
    assert not {*copy.modules()} & {*model.modules()}
    assert held_by(copy) == held_by(model)
    with torch.no_grad():
        assert torch.equal(copy(**tokens(copy))[0], model(**tokens(model))[0])


@pytest.mark.parametrize("settings", [FOUR, EIGHT], ids=["4 bits", "8 bits"])
def test_a_quantized_base_is_copied_without_its_weights_and_stays_as_it_is(settings):
    model = quantized(llama(), **settings).eval()
    take_over_quantized(model)
    with torch.no_grad():
        before = model(**tokens(model)).logits
    trial = Trial(model, None)
    one = tried(trial, of(llama)).entering
    layer, copied = (m.model.layers[0].self_attn.q_proj for m in (model, trial._model))
    assert layer is not copied and layer.weight is copied.weight
    with torch.no_grad():
        assert torch.equal(model(**tokens(model)).logits, before)
        attach_adapter(model, one)
        assert torch.equal(model(**tokens(model)).logits, before)
        set_adapter(model, "mine-1")
        assert not torch.equal(model(**tokens(model)).logits, before)


def test_what_comes_out_leaves_the_copy_ready_for_the_next():
    model = llama()
    before = snapshot(model)
    trial = Trial(model, None)
    first, second = tried(trial, of(llama)), tried(trial, of(llama, seed=8, r=3))
    assert_untouched(model, before)
    assert adapter_names(trial._model) == ()
    assert [len(one.entering.updates) for one in (first, second)] == [14, 14]
    assert [one.entering.updates[0].update.r for one in (first, second)] == [2, 3]
    assert [len(one.injection().matches) for one in (first, second)] == [14, 14]


def test_one_is_tried_at_a_time():
    trial, threads = Trial(llama(), None), []
    results = []
    for seed in range(4):
        adapter = of(llama, seed=seed)
        threads.append(
            threading.Thread(target=lambda adapter=adapter: results.append(tried(trial, adapter)))
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 4 and adapter_names(trial._model) == ()


def test_one_of_another_base_names_the_first_key_with_both_shapes():
    model = llama()
    before = snapshot(model)
    other = of(lambda: llama(hidden_size=24, intermediate_size=40))
    with pytest.raises(
        AdapterMismatchError,
        match=r"Cannot serve adapter 'mine' on this base.*q_proj\.lora_A has shape \(2, 24\), but "
        r"the base's layer needs \(2, 16\)",
    ):
        tried(Trial(model, None), other)
    assert_untouched(model, before)


def test_one_for_another_architecture_names_the_module():
    with pytest.raises(AdapterMismatchError, match=r"no module 'distilbert\.transformer\.layer"):
        tried(Trial(llama(), None), of(distilbert))


def test_a_head_with_another_number_of_labels_is_refused_with_both_shapes():
    five = of(lambda: distilbert(num_labels=5))
    with pytest.raises(
        AdapterMismatchError, match=r"classifier\.weight has shape \(5, 16\), but the base's is \(2"
    ):
        tried(Trial(distilbert(), None), five)


def test_more_tokens_than_the_base_are_refused():
    def larger():
        model = llama()
        model.resize_token_embeddings(40)
        return model

    adapter = Adapter.from_model(with_tokens(llama, (5, 36), model=larger()))
    with pytest.raises(
        AdapterMismatchError, match=r"'mine'.*vocabulary of 37 tokens, expected at most the 32"
    ):
        tried(Trial(llama(), None), adapter)
