"""Adapters enter the model, stay only if they act and give finite numbers, and leave it."""

from concurrent.futures import CancelledError, Future
from dataclasses import replace

import pytest
import torch

from fixtures.engines import TIMEOUT_S, Heard, request_of, running, tiny_gpt2, tiny_llama
from lorakit import Adapter, active_adapters
from lorakit.errors import AdapterFileError, AdapterNameError, EngineStoppedError
from lorakit.injection import adapter_names
from lorakit.layers.executors.per_row import PerRowAdapters
from lorakit.serving.store.admission import Admission
from lorakit.serving.store.probe import Probe
from lorakit.serving.store.trial import Trial
from lorakit.serving.store.values import StoreSettings
from tiny_models import assert_untouched, distilbert, llama, snapshot
from tiny_models.adapted import with_adapter

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
