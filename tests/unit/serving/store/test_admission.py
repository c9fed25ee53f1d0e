"""Adapters are tried on a copy of the model, enter it if they fit and act, and leave it."""

import threading
from concurrent.futures import CancelledError, Future
from dataclasses import replace

import pytest
import torch

from fixtures.engines import TIMEOUT_S, Heard, request_of, running, tiny_gpt2, tiny_llama
from lorakit import Adapter, active_adapters, set_adapter
from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterNameError,
    EngineStoppedError,
)
from lorakit.injection import adapter_names
from lorakit.injection.detached import attach_adapter
from lorakit.layers.executors.per_row import PerRowAdapters
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.serving.store.admission import Admission, Trial
from lorakit.serving.store.probe import Probe
from lorakit.serving.store.values import StoreSettings
from tiny_models import assert_untouched, bert, distilbert, gpt2, llama, snapshot, t5, tokens
from tiny_models.adapted import with_adapter
from tiny_models.quantized import EIGHT, FOUR, quantized
from tiny_models.trained_tokens import with_tokens

NAME = "mine-1"


def at_once(function):
    """Run a function as a thread does that is idle."""
    done = Future()
    try:
        done.set_result(function())
    except Exception as error:
        done.set_exception(error)
    return done


def candidate(model, build=llama, change=None, name=NAME, dtype=None, **config):
    adapter = Adapter.from_model(with_adapter(build, **{"seed": 7} | config))
    if change is not None:
        factors = {path: change(*pair) for path, pair in adapter.factors.items()}
        adapter = replace(adapter, factors=factors)
    return Trial(model, dtype).pass_through("mine", name, adapter)


def admission(model, run=at_once, visit=None, **options):
    return Admission(model, StoreSettings(**options), run, visit)


def too_small(A, B):
    return A, B * 1e-12


def too_large(A, B):
    return A * 1e30, B * 1e30


@pytest.mark.parametrize("build", [llama, distilbert])
def test_one_that_acts_enters(build):
    model = build()
    assert admission(model).admit(candidate(model, build)).result() is None
    assert adapter_names(model) == (NAME,)


@pytest.mark.parametrize(
    ("change", "text"), [(too_small, "outputs equal the base's"), (too_large, "NaN or infinities")]
)
def test_one_that_does_nothing_or_gives_nan_leaves_no_trace(change, text):
    model = llama()
    before = snapshot(model)
    error = admission(model).admit(candidate(model, change=change)).exception()
    assert isinstance(error, AdapterFileError) and text in str(error)
    assert_untouched(model, before)
    assert admission(model).admit(candidate(model)).result() is None


def test_one_that_does_nothing_may_be_allowed():
    model = llama()
    entering = candidate(model, change=too_small)
    assert admission(model, allow_noop=True).admit(entering).result() is None


@pytest.fixture
def busy():
    """An engine that answers something long, what it is told, and its model."""
    model = tiny_llama()
    with running(model) as engine:
        heard = Heard()
        engine.submit(request_of([5, 6], max_tokens=200), heard)
        heard.wait_for_text()
        yield engine, heard, model
        engine.stop(finish_running=False)


def entering(engine, model, build=tiny_llama, **options):
    given = candidate(model, build, **options)
    return admission(model, engine.between_steps, engine.visit).admit(given)


def test_beside_answers_one_enters_without_a_forward_pass_for_itself(busy, monkeypatch):
    engine, heard, model = busy
    monkeypatch.setattr(Probe, "check", lambda *_: pytest.fail("not needed"))
    assert entering(engine, model).result(TIMEOUT_S) is None
    assert adapter_names(model) == (NAME,) and heard.end is None


@pytest.mark.parametrize(
    ("change", "text"), [(too_small, "outputs equal the base's"), (too_large, "NaN or infinities")]
)
def test_beside_answers_one_is_refused_that_gives_nothing_or_nan(busy, change, text):
    engine, heard, model = busy
    error = entering(engine, model, change=change).exception(TIMEOUT_S)
    assert isinstance(error, AdapterFileError) and text in str(error)
    assert adapter_names(model) == () and heard.end is None
    assert entering(engine, model).result(TIMEOUT_S) is None


def test_a_weak_one_is_looked_at_twice_and_enters(busy):
    engine, _, model = busy
    assert entering(engine, model, change=lambda A, B: (A, B * 1e-5)).result(TIMEOUT_S) is None
    assert adapter_names(model) == (NAME,)


def test_what_cannot_run_in_a_row_is_refused_and_the_answers_go_on(monkeypatch):
    model = tiny_gpt2()
    call = PerRowAdapters.__call__

    def failing(self, layer, x):
        if NAME in self.names:
            raise RuntimeError("no rows here")
        return call(self, layer, x)

    monkeypatch.setattr(PerRowAdapters, "__call__", failing)
    with running(model) as engine:
        heard = Heard()
        engine.submit(request_of([5, 6], max_tokens=40), heard)
        heard.wait_for_text()
        error = entering(engine, model, tiny_gpt2).exception(TIMEOUT_S)
        assert isinstance(error, AdapterFileError) and "beside others" in str(error)
        assert len(heard.wait().tokens) == 40
        assert adapter_names(model) == ()


def test_a_taken_name_is_an_error_and_stays_taken(busy):
    engine, _, model = busy
    given = [candidate(model, tiny_llama) for _ in range(2)]
    both = admission(model, engine.between_steps, engine.visit)
    assert both.admit(given[0]).result(TIMEOUT_S) is None
    assert isinstance(both.admit(given[1]).exception(TIMEOUT_S), AdapterNameError)
    assert adapter_names(model) == (NAME,)


def test_a_base_that_gives_nan_is_looked_at_twice(busy):
    engine, _, model = busy

    def breaks():
        model.model.norm.weight.data[0] = torch.nan

    engine.between_steps(breaks).result(TIMEOUT_S)
    error = entering(engine, model).exception(TIMEOUT_S)
    assert "the base itself gives NaN" in str(error)


def test_nobody_waits_for_an_engine_that_ends(busy):
    engine, _, model = busy
    engine.stop(finish_running=False)
    assert isinstance(entering(engine, model).exception(TIMEOUT_S), EngineStoppedError)


def test_nobody_waits_for_a_thread_that_has_ended():
    def ended(function):
        raise RuntimeError("cannot schedule")

    model = llama()
    given = candidate(model)
    assert "cannot schedule" in str(admission(model, ended).admit(given).exception())
    cancelled = Future()
    cancelled.cancel()
    cancelled.set_running_or_notify_cancel()
    admitted = admission(model, lambda function: cancelled).admit(given)
    assert isinstance(admitted.exception(), CancelledError)


# ---- what enters and leaves ----


def test_one_enters_as_others_leave_and_none_acts_on_all_rows():
    model = llama()
    place = admission(model)
    place.admit(candidate(model, name="a-1")).result()
    place.admit(candidate(model, name="b-1", seed=8, r=3)).result()
    assert adapter_names(model) == ("a-1", "b-1") and active_adapters(model) == ()
    assert not any(p.requires_grad for p in model.parameters())
    place.remove(["a-1", "b-1"]).result()
    place.admit(candidate(model, name="a-2", seed=9)).result()
    assert adapter_names(model) == ("a-2",)


def test_the_base_is_as_before_when_all_have_left():
    model = llama()
    before = snapshot(model)
    place = admission(model)
    place.admit(candidate(model)).result()
    place.remove([NAME]).result()
    assert_untouched(model, before)


def test_bytes_are_those_of_the_dtype_in_memory():
    assert admission(llama()).bytes_of(10) == 40
    half = llama().to(torch.bfloat16)
    assert admission(half).bytes_of(10) == 40  # factors in float32 on a base in half precision
    assert admission(half, factor_dtype=torch.bfloat16).bytes_of(10) == 20


def test_factors_get_the_dtype_that_is_asked_for():
    model = llama()
    entering = candidate(model, dtype=torch.bfloat16)
    admission(model, factor_dtype=torch.bfloat16).admit(entering).result()
    update = model.model.layers[0].self_attn.q_proj.updates[NAME]
    assert update.lora_A.dtype == torch.bfloat16


# ---- the copy on which they are tried ----


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
    admission(model).keep_base_alike()
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
