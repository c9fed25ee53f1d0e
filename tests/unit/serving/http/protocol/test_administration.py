import json

import pytest

from lorakit.serving.http.protocol.administration import DetokenizeBody, LoadBody, TokenizeBody
from lorakit.serving.http.protocol.body import parse_body
from lorakit.serving.refusals import RequestError


def parsed(kind, **fields):
    return parse_body(kind, json.dumps(fields).encode())


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
