import json

import pytest
from openai.types import completion_create_params

from lorakit.serving.http.protocol.body import parse_body
from lorakit.serving.http.protocol.completions import CompletionBody, SamplingFields
from lorakit.serving.refusals import RequestError


def parsed(**fields):
    return parse_body(CompletionBody, json.dumps({"model": "m", "prompt": "a"} | fields).encode())


def test_every_field_of_openai_is_either_done_or_refused_by_name():
    known = set(completion_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert known <= set(CompletionBody.model_fields) | set(CompletionBody.unsupported)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2]], [[1], [2]]),
        ([], []),
    ],
)
def test_a_prompt_is_text_or_tokens_or_several(prompt, prompts):
    assert parsed(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("field", "value"),
    [("echo", True), ("suffix", "x"), ("best_of", 3), ("logprobs", True), ("prompt", [1, "a"])],
)
def test_what_cannot_be_done_is_refused_by_name(field, value):
    with pytest.raises(RequestError) as caught:
        parsed(**{field: value})
    assert f"'{field}" in str(caught.value)
    assert caught.value.param == field


def test_best_of_may_be_the_number_of_answers():
    assert parsed(best_of=2, n=2).n == 2


# ---- the fields that chat shares ----


def sampled_as(**fields):
    return parse_body(SamplingFields, json.dumps({"model": "m"} | fields).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("n", 0),
        ("frequency_penalty", 3),
        ("presence_penalty", -3),
        ("seed", 2**64),
        ("seed", 1.5),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {"1": 101}),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", 3),
        ("stream_options", {"colour": 1}),
        ("model", ""),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(RequestError) as caught:
        sampled_as(**{field: value})
    assert caught.value.param.startswith(field)


def test_stops_are_a_list_and_usage_is_wanted_or_not():
    assert sampled_as().stops == []
    assert sampled_as(stop="a").stops == ["a"]
    assert sampled_as(stop=["a", "b"]).stops == ["a", "b"]
    assert not sampled_as().includes_usage
    assert sampled_as(stream=True, stream_options={"include_usage": True}).includes_usage
