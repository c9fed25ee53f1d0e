"""The engine's thread: requests that come, are cancelled and end; functions between steps."""

import json
import random
import threading

import pytest
import torch

from fixtures.engines import (
    COLUMN_BYTES,
    LLAMA_ADAPTERS,
    Heard,
    alone,
    answers,
    mixed_requests,
    request_of,
    running,
    tiny_llama,
    with_adapters,
)
from lorakit import LoraConfig, add_adapter, delete_adapter
from lorakit.errors import (
    AdapterNameError,
    ConfigError,
    EngineStoppedError,
    QueueFullError,
)
from lorakit.serving.engine import Engine, EngineHooks, EngineSettings
from lorakit.serving.requests import Failed, NewText
from tiny_models import mixtral, t5
from tiny_models.by_type import small_model
from tiny_models.tokenizers import byte_bpe

LONG = 200


@pytest.fixture(scope="module")
def model():
    return with_adapters(tiny_llama())


def test_requests_are_taken_without_a_look_at_modules_that_may_be_changing(model, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("dictionary changed size during iteration")

    with running(model) as engine:
        here = threading.get_ident()
        listed = type(model).named_modules

        def list_elsewhere(self, *args, **options):
            return fail() if threading.get_ident() == here else listed(self, *args, **options)

        monkeypatch.setattr(type(model), "named_modules", list_elsewhere)
        heard = Heard()
        engine.submit(request_of([5, 6, 7], next(iter(LLAMA_ADAPTERS))), heard)
        heard.wait()
    assert not isinstance(heard.end, Failed)


def test_requests_that_come_and_go_at_any_time_are_answered_as_if_alone(model):
    draw = random.Random(5)
    requests = mixed_requests(80, LLAMA_ADAPTERS, seed=7, longest=40, most_tokens=16)
    expected = [alone(model, request) for request in requests]
    with running(
        model, max_batch_rows=8, kv_bytes=200 * COLUMN_BYTES, prefill_chunk_tokens=16
    ) as engine:
        heard = []
        for number, request in enumerate(requests):
            heard.append(Heard())
            handle = engine.submit(request, heard[-1])
            if number % 7 == 3:
                engine.cancel(handle)
            if draw.random() < 0.3:
                heard[draw.randrange(len(heard))].wait()
        for each in heard:
            each.wait()
    for number, (each, tokens) in enumerate(zip(heard, expected, strict=True)):
        if each.reason == "cancelled":
            assert number % 7 == 3 and each.tokens == tokens[: len(each.tokens)]
        else:
            assert each.tokens == tokens


def test_a_cancelled_answer_ends_and_the_others_go_on(model):
    with running(model) as engine:
        long, short = Heard(), Heard()
        handle = engine.submit(request_of([5, 6], max_tokens=LONG), long)
        engine.submit(request_of([7, 8], "lora", max_tokens=12), short)
        long.wait_for_text()
        engine.cancel(handle)
        assert long.wait().reason == "cancelled"
        assert 0 < len(long.tokens) < LONG
        assert short.wait().tokens == alone_later(model, engine, request_of([7, 8], "lora", 12))
        assert handle.is_over


def alone_later(model, engine, request):
    """The oracle while an engine has the model: between two of its steps."""
    return engine.between_steps(lambda: alone(model, request)).result()


def test_a_request_is_cancelled_while_it_waits_or_is_over(model):
    with running(model, max_batch_rows=1) as engine:
        first, second = Heard(), Heard()
        running_one = engine.submit(request_of([5], max_tokens=LONG), first)
        waiting = engine.submit(request_of([6]), second)
        first.wait_for_text()
        engine.cancel(waiting)
        second.wait()
        assert (second.reason, second.tokens) == ("cancelled", [])
        engine.cancel(running_one)
        first.wait()
        engine.cancel(running_one)
        engine.between_steps(lambda: None).result()
        assert first.reason == "cancelled"


def test_a_receiver_that_raises_loses_its_own_answer_only(model, caplog):
    def broken(event):
        raise ConnectionError("gone")

    with running(model) as engine:
        handle = engine.submit(request_of([5], "lora", max_tokens=LONG), broken)
        good = Heard()
        engine.submit(request_of([6], max_tokens=20), good)
        assert len(good.wait().tokens) == 20
        engine.between_steps(lambda: None).result()
        assert handle.is_over and engine.failure is None
    assert "gone" in caplog.text


def test_an_adapter_comes_and_goes_between_two_steps(model):
    with running(model) as engine:
        long = Heard()
        handle = engine.submit(request_of([5, 6], "lora", max_tokens=LONG), long)
        long.wait_for_text()
        engine.between_steps(lambda: add_adapter(model, LoraConfig(r=2), "new")).result()
        heard = answers(engine, [request_of([5, 6], "new", max_tokens=4)])[0]
        assert heard.tokens == alone_later(model, engine, request_of([5, 6], None, max_tokens=4))
        engine.between_steps(lambda: delete_adapter(model, "new")).result()
        with pytest.raises(AdapterNameError, match="No adapter is named 'new'"):
            engine.submit(request_of([5], "new"), Heard())
        engine.cancel(handle)
        long.wait()
        expected = alone_later(model, engine, request_of([5, 6], "lora", LONG))
        assert long.tokens == expected[: len(long.tokens)]


def test_what_a_function_raises_is_in_its_future_alone(model):
    with running(model) as engine:
        future = engine.between_steps(lambda: 1 / 0)
        assert isinstance(future.exception(), ZeroDivisionError)
        assert answers(engine, [request_of([5])])[0].reason == "length"
        assert engine.between_steps(threading.current_thread).result().name == "lorakit-engine"


def test_the_state_counts_what_waits_and_runs(model):
    with running(model, max_batch_rows=1) as engine:
        heard = [Heard() for _ in range(3)]
        for each in heard:
            engine.submit(request_of([5], "dora", max_tokens=LONG), each)
        heard[0].wait()
        stats = engine.between_steps(lambda: engine.stats).result()  # none is just being moved
        assert stats.waiting + stats.running == 2


def test_a_full_queue_refuses(model):
    with running(model, max_batch_rows=1, max_waiting=2) as engine:
        first = Heard()
        engine.submit(request_of([5], max_tokens=LONG), first)
        first.wait_for_text()
        for _ in range(2):
            engine.submit(request_of([6]), Heard())
        with pytest.raises(QueueFullError, match="got 2 requests in the queue, expected fewer"):
            engine.submit(request_of([6]), Heard())


def test_a_stopping_engine_finishes_what_it_accepted(model):
    engine = Engine(model, byte_bpe(), EngineSettings(max_batch_rows=2))
    engine.start()
    heard = [Heard() for _ in range(5)]
    for each in heard:
        engine.submit(request_of([5], "lora", max_tokens=30), each)
    engine.stop()
    assert [len(each.tokens) for each in heard] == [30] * 5
    with pytest.raises(EngineStoppedError, match="it is stopping"):
        engine.submit(request_of([5]), Heard())
    assert isinstance(engine.between_steps(int).exception(), EngineStoppedError)
    assert not engine.is_alive


@pytest.mark.parametrize("limits", [{"finish_running": False}, {"timeout_s": 0.0}])
def test_an_engine_that_does_not_wait_fails_what_is_left(model, limits):
    engine = Engine(model, byte_bpe())
    engine.start()
    heard = Heard()
    engine.submit(request_of([5], max_tokens=LONG), heard)
    heard.wait_for_text()
    engine.stop(**limits)
    assert isinstance(heard.end, Failed) and isinstance(heard.end.error, EngineStoppedError)


def test_an_engine_that_was_never_started_is_stopped():
    engine = Engine(tiny_llama(), byte_bpe())
    heard = Heard()
    engine.submit(request_of([5]), heard)
    future = engine.between_steps(int)
    engine.stop()
    assert isinstance(heard.end, Failed)
    assert isinstance(future.exception(), EngineStoppedError)


def test_a_failure_of_the_engine_itself_is_told_to_all(model, caplog, monkeypatch):
    engine = Engine(model, byte_bpe())
    monkeypatch.setattr(engine._steps, "step", lambda: {}["missing"])
    heard = Heard()
    engine.submit(request_of([5]), heard)
    engine.start()
    heard.wait()
    engine.stop()
    assert isinstance(heard.end, Failed)
    assert "its engine failed with KeyError" in str(heard.end.error)
    with pytest.raises(EngineStoppedError, match="its engine failed with KeyError"):
        engine.submit(request_of([5]), Heard())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (request_of(range(4, 204), max_tokens=100), "got 200 tokens and 100 new ones, expected at"),
        (request_of([]), "got 0 tokens of a prompt and max_tokens 8"),
        (request_of([5], max_tokens=0), "max_tokens 0, expected at least one"),
        (request_of([5, 420]), "got 420, expected 0 to 419"),
        (request_of([-1]), "got -1, expected 0 to 419"),
        (
            request_of([5], logit_bias={7: 1.0, 420: 1.0}),
            "logit_bias has an unknown token: got 420",
        ),
    ],
)
def test_what_can_never_be_answered_is_refused(model, request_, message):
    engine = Engine(model, byte_bpe())
    with pytest.raises(ConfigError, match=message):
        engine.submit(request_, Heard())


def test_more_than_the_memory_for_keys_and_values_is_refused(model):
    engine = Engine(model, byte_bpe(), EngineSettings(kv_bytes=40 * COLUMN_BYTES))
    with pytest.raises(ConfigError, match="at most 40 together, the memory for keys and values"):
        engine.submit(request_of([5], max_tokens=40), Heard())


def test_a_memory_that_holds_no_prompt_with_an_answer_is_refused(model):
    assert Engine(model, byte_bpe(), EngineSettings(kv_bytes=2 * COLUMN_BYTES)).most_tokens == 2
    with pytest.raises(ConfigError, match=f"got 10 bytes, expected at least {2 * COLUMN_BYTES}"):
        Engine(model, byte_bpe(), EngineSettings(kv_bytes=10))


def test_models_that_keep_other_states_are_refused():
    with pytest.raises(ConfigError, match="got an encoder and a decoder"):
        Engine(t5(), byte_bpe())
    with pytest.raises(ConfigError, match="expected keys and values of each token in all layers"):
        Engine(small_model("qwen3_next"), byte_bpe())


def test_a_mixture_of_experts_is_served():
    model = with_adapters(mixtral(vocab_size=420, max_position_embeddings=256), {"lora": {"r": 2}})
    requests = mixed_requests(6, ["lora"], longest=20)
    expected = [alone(model, request) for request in requests]
    with running(model) as engine:
        assert [each.tokens for each in answers(engine, requests)] == expected


def test_hooks_are_told_of_tokens_and_steps(model):
    first, following, steps = [], [], []
    hooks = EngineHooks(
        first.append,
        following.append,
        lambda *each: steps.append(each),
    )
    with running(model, hooks) as engine:
        answers(engine, [request_of([5], "lora", max_tokens=4)])
        engine.between_steps(int).result()
    assert (len(first), len(following)) == (1, 3)
    assert [rows for rows, _ in steps] == [1] * 3
    assert all(seconds >= 0 for seconds in (*first, *following, *(each for _, each in steps)))


def test_drawn_answers_repeat_whatever_runs_beside_them(model):
    drawn = [
        request_of(range(10, 30), "lora", 30, temperature=0.9, top_p=0.9, seed=3),
        request_of([5, 6], None, 30, temperature=1.2, top_k=20, min_p=0.01, seed=4),
        request_of([5, 6], "dora", 30, temperature=1.0, seed=5, frequency_penalty=0.5),
    ]
    with running(model) as engine:
        singly = [answers(engine, [request])[0].tokens for request in drawn]
        assert answers(engine, [request_of([5, 6], None, 30, temperature=1.0, seed=9)])
    others = mixed_requests(10, LLAMA_ADAPTERS, seed=1, most_tokens=60)
    with running(model, kv_bytes=120 * COLUMN_BYTES, prefix_cache_bytes=0) as engine:
        heard = answers(engine, [*others[:5], *drawn, *others[5:]])[5:8]
        assert engine.stats.preemptions > 0
    assert [each.tokens for each in heard] == singly
    assert len({tuple(tokens) for tokens in singly}) == 3


def test_log_probabilities_are_those_of_the_model(model):
    request = request_of(range(10, 30), "large", 6, logprobs=3, logit_bias={17: 5.0})
    with running(model) as engine:
        heard = answers(engine, [request, *mixed_requests(4, LLAMA_ADAPTERS)])[0]

        def expected():
            from lorakit import set_adapter

            set_adapter(model, "large")
            ids = torch.tensor([[*request.prompt, *heard.tokens]])
            return model(input_ids=ids).logits[0, len(request.prompt) - 1 : -1].log_softmax(-1)

        logprobs = engine.between_steps(expected).result()
    assert [each.token_id for each in heard.logprobs] == heard.tokens
    for row, each in zip(logprobs, heard.logprobs, strict=True):
        assert each.logprob == pytest.approx(row[each.token_id].item(), abs=1e-4)
        values, tokens = row.topk(3)
        assert [token for token, _ in each.likeliest] == tokens.tolist()
        assert [value for _, value in each.likeliest] == pytest.approx(values.tolist(), abs=1e-4)


def test_events_come_in_order_and_their_texts_are_the_answer(model):
    tokenizer = byte_bpe()
    with running(model) as engine:
        heard = answers(engine, [request_of(range(10, 30), "lora", 40)])[0]
    assert all(isinstance(event, NewText) for event in heard.events[:-1])
    assert heard.text == tokenizer.decode(heard.tokens, skip_special_tokens=True)


def test_an_answer_keeps_to_a_json_schema(model):
    import llguidance
    from llguidance.hf import from_tokenizer

    tokenizer = byte_bpe()
    known = from_tokenizer(tokenizer, n_vocab=len(tokenizer))
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 99},
            "b": {"enum": ["x", "yy"]},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    grammar = llguidance.LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_flexible": False}
    )
    requests = [
        request_of(
            [5 + n],
            "lora",
            60,
            temperature=1.0,
            seed=n,
            stop_token_ids=frozenset({tokenizer.eos_token_id}),
            grammar=llguidance.LLMatcher(known, grammar),
        )
        for n in range(4)
    ]
    with running(model, kv_bytes=150 * COLUMN_BYTES) as engine:
        heard = answers(engine, [*requests, *mixed_requests(3, ["dora"])])
    for each in heard[:4]:
        assert each.reason == "stop"
        value = json.loads(each.text)
        assert set(value) == {"a", "b"} and value["b"] in ("x", "yy")


def test_a_request_cancelled_while_its_prompt_is_read_is_told_nothing_more(model):
    with running(model, prefill_chunk_tokens=4) as engine:
        heard, others = Heard(), [Heard() for _ in range(2)]

        def submit():
            handle = engine.submit(request_of(range(10, 100)), heard)
            engine.submit(request_of([5], "lora"), others[0])
            engine.submit(request_of([6]), others[1])
            return handle

        handle = engine.between_steps(submit).result()
        engine.between_steps(lambda: engine.cancel(handle)).result()
        assert heard.wait().reason == "cancelled" and heard.tokens == []
        assert [len(each.wait().tokens) for each in others] == [8, 8]
