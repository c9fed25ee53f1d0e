import json

import pytest
from openai.types import completion_create_params

from lorakit.serving.http.protocol.body import parse_body
from lorakit.serving.http.protocol.completions import CompletionBody
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
