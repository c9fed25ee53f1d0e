import json

import pytest
from openai.types import EmbeddingCreateParams

from lorakit.serving.http.protocol.body import parse_body
from lorakit.serving.http.protocol.other_calls import (
    ClassifyBody,
    DetokenizeBody,
    EmbeddingsBody,
    LoadBody,
    ScoreBody,
    TokenizeBody,
)
from lorakit.serving.refusals import RequestError


def parsed(kind, **fields):
    return parse_body(kind, json.dumps(fields).encode())


def test_every_field_of_openai_is_either_done_or_refused_by_name():
    known = set(EmbeddingCreateParams.__annotations__)
    assert known <= set(EmbeddingsBody.model_fields) | set(EmbeddingsBody.unsupported)
    with pytest.raises(RequestError, match="'dimensions' is not supported"):
        parsed(EmbeddingsBody, model="m", input="a", dimensions=3)


def test_inputs_to_classify_are_texts_pairs_or_words():
    for given in ("a", ["a", "b"], [["a", "b"]]):
        assert parsed(ClassifyBody, model="m", input=given).input == given
    for given in ([], [[]], 3, [3]):
        with pytest.raises(RequestError) as caught:
            parsed(ClassifyBody, model="m", input=given)
        assert caught.value.param == "input"


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("a", "b", [("a", "b")]),
        ("a", ["b", "c"], [("a", "b"), ("a", "c")]),
        (["a", "b"], ["c", "d"], [("a", "c"), ("b", "d")]),
    ],
)
def test_pairs_are_one_against_many_or_many_against_as_many(first, second, pairs):
    assert parsed(ScoreBody, model="m", text_1=first, text_2=second).pairs == pairs


def test_texts_that_make_no_pairs_are_refused():
    with pytest.raises(RequestError, match="got 2 and 3 texts"):
        parsed(ScoreBody, model="m", text_1=["a", "b"], text_2=["c", "d", "e"])


def test_a_text_or_a_conversation_is_tokenized_not_both_nor_none():
    assert parsed(TokenizeBody, model="m", prompt="").prompt == ""
    messages = [{"role": "user", "content": "a"}]
    assert len(parsed(TokenizeBody, model="m", messages=messages).messages) == 1
    with pytest.raises(RequestError, match="got neither, expected one"):
        parsed(TokenizeBody, model="m")
    with pytest.raises(RequestError, match="got both, expected one"):
        parsed(TokenizeBody, model="m", prompt="a", messages=messages)


def test_tokens_are_numbers():
    assert parsed(DetokenizeBody, model="m", tokens=[1]).tokens == [1]
    with pytest.raises(RequestError) as caught:
        parsed(DetokenizeBody, model="m", tokens=["a"])
    assert caught.value.param == "tokens[0]"


def test_an_adapter_has_a_name_and_a_path():
    assert parsed(LoadBody, lora_name="a", lora_path="b", load_inplace=False).lora_name == "a"
    for fields in ({"lora_name": "a"}, {"lora_name": "", "lora_path": "b"}):
        with pytest.raises(RequestError):
            parsed(LoadBody, **fields)
