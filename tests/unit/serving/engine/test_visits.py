"""An adapter takes part in one step, beside answers that stay as they are."""

import pytest
import torch

from fixtures.engines import (
    COLUMN_BYTES,
    LLAMA_ADAPTERS,
    TIMEOUT_S,
    Heard,
    alone,
    mixed_requests,
    request_of,
    running,
    tiny_gemma,
    tiny_gpt2,
    tiny_llama,
    with_adapters,
)
from lorakit.errors import EngineStoppedError
from lorakit.injection import adapter_rows
from lorakit.injection.activation import remove_adapters
from lorakit.serving.engine.visits import Visit
from tolerances import TOLERANCE, largest_error

TOKEN = 7


@pytest.fixture(scope="module")
def model():
    return with_adapters(tiny_llama())


def nothing():
    """Let the model as it is."""


def expected(model, name):
    """Return the logits after two tokens, the first without the adapter: (2, vocabulary)."""
    both = torch.tensor([[1, TOKEN], [1, TOKEN]])
    with torch.no_grad():
        with adapter_rows(model, [None, None]):
            base = model(both[:, :1], use_cache=True)
        with adapter_rows(model, [None, name]):
            return model(both[:, 1:], cache=base.cache).logits[:, -1]


@pytest.mark.parametrize("name", LLAMA_ADAPTERS)
@pytest.mark.parametrize("is_busy", [True, False], ids=["beside answers", "idle"])
def test_a_visit_gives_the_logits_with_and_without_the_adapter(model, name, is_busy):
    base, adapted = expected(model, name)
    with running(model) as engine:
        long = Heard()
        if is_busy:
            engine.submit(request_of([5, 6], "lora", max_tokens=200), long)
            long.wait_for_text()
        visit = engine.visit(name, TOKEN, nothing).result(TIMEOUT_S)
        engine.stop(finish_running=False)
    assert visit.is_finite and visit.base.dtype == torch.float32
    assert largest_error(visit.base, base) <= TOLERANCE[torch.float32]
    assert largest_error(visit.adapted, adapted) <= TOLERANCE[torch.float32]
    assert largest_error(visit.adapted, base) > 0.01


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_gemma])
@pytest.mark.parametrize("columns", [150, 4000], ids=["little memory", "enough memory"])
def test_answers_are_those_without_visits(make, columns):
    model = with_adapters(make(), {"a": {"r": 2}, "b": {"r": 3}})
    requests = mixed_requests(20, ["a", "b"], seed=2, longest=20, most_tokens=20)
    answers = [alone(model, request) for request in requests]
    with running(model, max_batch_rows=4, kv_bytes=columns * COLUMN_BYTES) as engine:
        heard = []
        for request in requests:
            heard.append(Heard())
            engine.submit(request, heard[-1])
        visits = [engine.visit("ab"[n % 2], 4 + n, nothing) for n in range(12)]
        assert all(visit.result(TIMEOUT_S).is_finite for visit in visits)
        assert [each.wait().tokens for each in heard] == answers


def test_a_visit_that_fails_disturbs_no_answer(model, monkeypatch):
    requests = mixed_requests(6, ["lora", "large"], seed=4, longest=9, most_tokens=30)
    answers = [alone(model, request) for request in requests]
    with running(model) as engine:
        forward = engine._steps.runner.forward

        def failing(ids, cache, names, *rest):
            if "head" in names:
                raise ValueError("no rows here")
            return forward(ids, cache, names, *rest)

        monkeypatch.setattr(engine._steps.runner, "forward", failing)
        heard = [Heard() for _ in requests]
        for request, each in zip(requests, heard, strict=True):
            engine.submit(request, each)
        heard[0].wait_for_text()
        visits = [engine.visit("head", TOKEN, nothing) for _ in range(3)]
        assert all("no rows here" in str(visit.exception(TIMEOUT_S)) for visit in visits)
        assert [each.wait().tokens for each in heard] == answers
        assert engine.visit("head", TOKEN, nothing).exception(TIMEOUT_S) is not None  # idle


def test_keys_that_attention_would_drop_are_not_finite():
    model = with_adapters(tiny_llama(), {"lora": {"r": 2}})
    layer = model.model.layers[1].self_attn.k_proj
    with torch.no_grad():
        layer.updates["lora"].lora_B.mul_(1e38)
    with running(model) as engine:
        assert not engine.visit("lora", TOKEN, nothing).result(TIMEOUT_S).is_finite


def test_what_lets_the_adapter_in_runs_before_and_its_error_is_passed_on(model):
    with running(model) as engine:
        ran = []
        assert engine.visit("lora", TOKEN, lambda: ran.append(1)).result(TIMEOUT_S) and ran == [1]

        def fails():
            raise ZeroDivisionError("not today")

        assert isinstance(engine.visit("lora", TOKEN, fails).exception(), ZeroDivisionError)
        assert engine.visit("lora", TOKEN, nothing).result(TIMEOUT_S).is_finite


def test_an_adapter_enters_and_leaves_between_steps():
    model = with_adapters(tiny_llama(), {"a": {"r": 2}, "b": {"r": 3}})
    with running(model) as engine:
        long = Heard()
        engine.submit(request_of([5, 6], "a", max_tokens=60), long)
        long.wait_for_text()
        assert engine.visit("b", TOKEN, nothing).result(TIMEOUT_S).is_finite
        engine.between_steps(lambda: remove_adapters(model, ("b",))).result(TIMEOUT_S)
        error = engine.visit("b", TOKEN, nothing).exception(TIMEOUT_S)
        assert "No adapter is named 'b'" in str(error)
        assert len(long.wait().tokens) == 60


def test_the_end_of_the_engine_ends_the_wait(model):
    engine = running_not(model)
    waiting = engine.visit("lora", TOKEN, nothing)
    engine.stop()
    assert isinstance(waiting.exception(TIMEOUT_S), EngineStoppedError)
    assert isinstance(engine.visit("lora", TOKEN, nothing).exception(), EngineStoppedError)


def test_a_failure_of_the_engine_ends_the_wait(model, monkeypatch):
    with running(model) as engine:

        def breaks():
            raise SystemError("the engine is broken")

        monkeypatch.setattr(engine._steps, "step", breaks)
        error = engine.visit("lora", TOKEN, nothing).exception(TIMEOUT_S)
        assert isinstance(error, EngineStoppedError) and "broken" in str(error)


def test_nobody_needs_to_wait(model):
    visit = Visit("lora", TOKEN)
    visit.result.cancel()
    visit.fail(ValueError())
    with running(model) as engine:
        engine.visit("lora", TOKEN, nothing).cancel()
        assert engine.visit("lora", TOKEN, nothing).result(TIMEOUT_S).is_finite


def running_not(model):
    """Return an engine that has not been started."""
    from lorakit.serving.engine import Engine
    from tiny_models.tokenizers import byte_bpe

    return Engine(model, byte_bpe())
