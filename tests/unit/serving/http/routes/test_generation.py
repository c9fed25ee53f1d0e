import asyncio
from contextlib import aclosing
from types import SimpleNamespace

from lorakit.serving.http.routes.generation import Asked, Prompt, Usage
from lorakit.serving.requests import NewText, Sampling


def test_usage_has_openais_names():
    assert Usage(prompt=5, cached=4, completion=2).as_json() == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_a_prompt_that_was_read_before_is_counted_as_cached(served):
    body = {"model": "german", "prompt": list(range(10, 80)), "max_tokens": 1}
    served.post("/v1/completions", body)
    usage = served.post("/v1/completions", body)["usage"]
    assert usage["prompt_tokens"] == 70
    assert usage["prompt_tokens_details"]["cached_tokens"] in (48, 64)
    other = served.post("/v1/completions", body | {"model": "french"})["usage"]
    assert other["prompt_tokens_details"]["cached_tokens"] == 0


def test_tokens_of_an_answer_that_nobody_waits_for_are_counted():
    async def written():
        for token in (5, 6, 7):
            yield 0, NewText((token,), "a")

    call = SimpleNamespace(note_first_token=lambda: None)
    answers = SimpleNamespace(events=written)
    asked = Asked(call, None, [Prompt([1, 2], [Sampling(max_tokens=9)])], answers)

    async def leave_after_two():
        async with aclosing(asked.events()) as events:
            await anext(events)
            await anext(events)

    asyncio.run(leave_after_two())
    assert (call.input_tokens, call.output_tokens) == (2, 2)
