"""Every answer equals that of the request alone with its adapter alone, token for token."""

import pytest
import torch

from fixtures.engines import (
    COLUMN_BYTES,
    GPT2_ADAPTERS,
    LLAMA_ADAPTERS,
    alone,
    answers,
    mixed_requests,
    request_of,
    running,
    tiny_gemma,
    tiny_gpt2,
    tiny_llama,
    tiny_mistral,
    with_adapters,
)
from lorakit.serving.requests import Failed
from tiny_models.quantized import quantized

MODELS = {
    "llama": (tiny_llama, LLAMA_ADAPTERS),
    "gpt2": (tiny_gpt2, GPT2_ADAPTERS),
    "mistral": (tiny_mistral, LLAMA_ADAPTERS),
    "gemma": (tiny_gemma, {"lora": {"r": 2}, "dora": {"r": 3, "use_dora": True}}),
    "llama in 4 bits": (lambda: quantized(tiny_llama()), {"lora": {"r": 2}, "large": {"r": 5}}),
}


@pytest.mark.parametrize("name", MODELS)
def test_mixed_requests_are_answered_as_if_alone(name):
    make, adapters = MODELS[name]
    model = with_adapters(make(), adapters)
    requests = mixed_requests(24, adapters)
    expected = [alone(model, request) for request in requests]
    assert len({tuple(tokens) for tokens in expected}) > 12  # the answers are told apart
    with running(model, max_batch_rows=6, prefill_chunk_tokens=32) as engine:
        heard = answers(engine, requests)
        assert [each.tokens for each in heard] == expected
        for request, each in zip(requests, heard, strict=True):
            ended = len(each.tokens) < request.sampling.max_tokens
            assert each.reason == ("stop" if ended else "length")
            assert each.end.prompt_tokens == len(request.prompt)
            assert each.end.completion_tokens == len(each.tokens)
        stats = engine.between_steps(lambda: engine.stats).result()
        assert stats.running == stats.waiting == 0


def test_answers_that_lose_their_place_continue_where_they_were():
    model = with_adapters(tiny_llama())
    requests = mixed_requests(16, LLAMA_ADAPTERS, seed=3, longest=30, most_tokens=60)
    expected = [alone(model, request) for request in requests]
    with running(
        model, kv_bytes=160 * COLUMN_BYTES, max_batch_rows=16, prefix_cache_bytes=0
    ) as engine:
        heard = answers(engine, requests)
        assert engine.stats.preemptions > 0
        assert engine.stats.kv_bytes <= 160 * COLUMN_BYTES
    assert [each.tokens for each in heard] == expected


def test_prefixes_are_shared_by_the_same_adapter_only():
    model = with_adapters(tiny_llama())
    beginning = list(range(10, 60))
    requests = [
        request_of([*beginning, 100 + n], adapter, max_tokens=12)
        for n in range(3)
        for adapter in (None, *LLAMA_ADAPTERS)
    ]
    expected = [alone(model, request) for request in requests]
    with running(model) as engine:
        for round_ in range(2):
            for request, tokens in zip(requests, expected, strict=True):
                heard = answers(engine, [request])[0]
                assert heard.tokens == tokens
                is_first = round_ == 0 and request.prompt[-1] == 100
                assert heard.end.cached_tokens == (0 if is_first else 48)
        assert engine.stats.cached_tokens == (len(requests) * 2 - 5) * 48


def test_another_version_of_an_adapter_reads_its_prompt_again():
    model = with_adapters(tiny_llama())
    prompt = list(range(10, 60))
    with running(model) as engine:
        for key, cached in (("v1", 0), ("v1", 48), ("v2", 0)):
            heard = answers(engine, [request_of(prompt, "lora", cache_key=key)])[0]
            assert heard.end.cached_tokens == cached


def test_a_next_turn_finds_the_answer_cached():
    model = with_adapters(tiny_llama())
    with running(model) as engine:
        first = answers(engine, [request_of(range(10, 40), "lora", max_tokens=40)])[0]
        turn = [*range(10, 40), *first.tokens, 7, 8]
        second = answers(engine, [request_of(turn, "lora")])[0]
    assert second.end.cached_tokens == 64  # of 72; the last token of an answer is never read
    assert second.tokens == alone(model, request_of(turn, "lora"))


def test_a_model_without_adapters_is_served():
    model = tiny_llama()
    requests = mixed_requests(5, ())
    with running(model) as engine:
        heard = answers(engine, requests)
    assert [each.tokens for each in heard] == [alone(model, request) for request in requests]


def test_a_failure_in_a_step_is_that_of_one_request(caplog):
    model = with_adapters(tiny_llama())
    requests = mixed_requests(8, ["lora"], longest=20)
    expected = [alone(model, request) for request in requests]
    bad = request_of([5, 6, 7], "head", max_tokens=5)

    def fail(_module, args, kwargs):
        ids = kwargs["input_ids"]
        if (ids[:, -1] == 7).any():
            raise RuntimeError("no such row")

    model.register_forward_pre_hook(fail, with_kwargs=True)
    with running(model) as engine:
        heard = answers(engine, [*requests, bad])
        assert engine.failure is None
    good = [each for each, tokens in zip(heard, expected, strict=False) if 7 not in tokens]
    assert [each.tokens for each in good] == [tokens for tokens in expected if 7 not in tokens]
    assert isinstance(heard[-1].end, Failed)
    assert "got RuntimeError: no such row" in str(heard[-1].end.error)
    assert "adapter 'head'" in str(heard[-1].end.error)


def test_an_adapter_with_infinite_weights_harms_nobody_else():
    model = with_adapters(tiny_llama())
    requests = mixed_requests(12, ["lora", "dora"], longest=20)
    expected = [alone(model, request) for request in requests]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".large." in name and "lora_B" in name:
                parameter.fill_(torch.inf)
    bad = [request_of([5, 6, 7], "large") for _ in range(4)]
    order = [each for pair in zip(bad, requests[:4], strict=True) for each in pair] + requests[4:]
    with running(model, max_batch_rows=4) as engine:
        heard = dict(zip(map(id, order), answers(engine, order), strict=True))
    assert [heard[id(request)].tokens for request in requests] == expected
    for request in bad:
        assert "infinite or not numbers" in str(heard[id(request)].end.error)
