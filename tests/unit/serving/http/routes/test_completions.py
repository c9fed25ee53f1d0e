import pytest


def asked(**fields):
    return {"model": "german", "prompt": "the sky", "temperature": 0, "ignore_eos": True} | fields


def test_an_answer_has_sixteen_tokens_unless_more_are_asked_for(served):
    made = served.post("/v1/completions", asked())
    assert made["usage"]["completion_tokens"] == 16
    assert made["choices"][0]["finish_reason"] == "length"


def test_a_token_that_is_part_of_a_character_is_reported_as_its_bytes(served):
    made = served.post("/v1/completions", asked(logprobs=20, max_tokens=40))
    logprobs = made["choices"][0]["logprobs"]
    names = {name for each in logprobs["top_logprobs"] for name in each}
    assert any(name.startswith("bytes:\\x") for name in names)
    assert not any("\ufffd" in name for name in names)


def test_the_chosen_token_is_among_the_likeliest(served):
    made = served.post("/v1/completions", asked(logprobs=0, temperature=2, seed=3))
    logprobs = made["choices"][0]["logprobs"]
    for token, value, each in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert each == {token: value}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "got no prompt"),
        ([100_000], "got token 100000, expected token ids from 0 to"),
        ([[1], []], "got no token"),
        ("sky " * 200, "The prompt is too long: got"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(served, prompt, words):
    error = served.post("/v1/completions", asked(prompt=prompt), 400)
    assert error["param"] == "prompt" and words in error["message"]


def test_an_empty_text_is_continued_from_the_beginning(served):
    made = served.post("/v1/completions", asked(prompt=""))
    assert made["usage"]["prompt_tokens"] == 1


def test_prompt_and_answer_share_the_context(served):
    error = served.post("/v1/completions", asked(max_tokens=128), 400)
    assert error["param"] == "max_tokens" and error["code"] == "context_length_exceeded"
    assert "expected at most 128 together" in error["message"]


def test_a_bias_and_penalties_change_the_answer(served):
    plain = served.post("/v1/completions", asked(logprobs=0))
    banned = served.post("/tokenize", {"model": "german", "prompt": plain["choices"][0]["text"]})
    bias = {str(token): -100 for token in banned["tokens"]}
    changed = served.post("/v1/completions", asked(logit_bias=bias))
    assert changed["choices"][0]["text"] != plain["choices"][0]["text"]
    served.post("/v1/completions", asked(presence_penalty=2, frequency_penalty=2, top_k=5))


def test_too_many_prompts_are_refused(served):
    error = served.post("/v1/completions", asked(prompt=["a"] * 257), 400)
    assert error["message"] == (
        "The parameter 'prompt' is wrong: got 257 prompts, expected at most 256."
    )
