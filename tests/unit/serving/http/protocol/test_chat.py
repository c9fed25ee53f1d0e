import json

import pytest
from openai.types.chat import completion_create_params

from lorakit.serving.http.protocol.body import parse_body
from lorakit.serving.http.protocol.chat import ChatBody, Message
from lorakit.serving.refusals import RequestError

HELLO = [{"role": "user", "content": "Hello"}]


def parsed(**fields):
    values = {"model": "m", "messages": HELLO} | fields
    return parse_body(ChatBody, json.dumps(values).encode())


def refused(**fields):
    with pytest.raises(RequestError) as caught:
        parsed(**fields)
    return caught.value


def test_every_field_of_openai_is_either_done_or_refused_by_name():
    known = set(completion_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    done, unsupported = set(ChatBody.model_fields), set(ChatBody.unsupported)
    assert known <= done | unsupported
    assert not done & unsupported


def test_parts_and_the_developer_become_what_templates_know():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = Message.model_validate({"role": "developer", "content": parts})
    assert message.render() == {"role": "system", "content": "a\nb"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "1"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": "a", "colour": 1}, "messages[0].colour"),
        ({"role": "assistant", "content": "a", "tool_calls": []}, "messages[0].tool_calls"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[0].content",
        ),
    ],
)
def test_a_message_that_cannot_be_rendered_is_refused_with_its_place(message, param):
    assert refused(messages=[message]).param.startswith(param)


def test_an_empty_conversation_is_refused():
    assert refused(messages=[]).param == "messages"


def test_tools_are_refused_with_what_to_do_instead():
    error = refused(tools=[{"type": "function", "function": {"name": "f"}}])
    assert error.param == "tools"
    assert "response_format" in str(error)
    assert parsed(tools=[], tool_choice="auto").model == "m"


def test_both_names_of_the_length_are_understood():
    assert parsed().most_tokens is None
    assert parsed(max_tokens=3).most_tokens == 3
    assert parsed(max_completion_tokens=4).most_tokens == 4
    assert parsed(max_completion_tokens=4, max_tokens=4).most_tokens == 4
    assert "disagree: got 3 and 4" in str(refused(max_tokens=3, max_completion_tokens=4))


def test_fields_that_need_another_are_refused_without_it():
    assert "'top_logprobs' requires 'logprobs'" in str(refused(top_logprobs=2))
    assert "'stream_options' requires 'stream'" in str(refused(stream_options={}))
    assert parsed(logprobs=True).likeliest == 0
    assert parsed(logprobs=True, top_logprobs=2).likeliest == 2
    assert parsed(logprobs=False).likeliest is None


def test_the_format_of_an_answer():
    schema = {"type": "object"}
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert parsed(response_format=given).response_format.schema_of_answer == schema
    assert parsed(response_format={"type": "text"}).response_format.schema_of_answer is None
    assert parsed(response_format={"type": "json_object"}).response_format.schema_of_answer
    without = str(refused(response_format={"type": "json_schema"}))
    assert "got type 'json_schema' without it" in without
    assert without.count("response_format") == 1
    assert refused(response_format={"type": "xml"}).param == "response_format.type"


def test_metadata_is_bounded():
    assert parsed(metadata={"a": "b"}).metadata == {"a": "b"}
    assert refused(metadata={str(i): "" for i in range(17)}).param == "metadata"
    assert refused(metadata={"a": 1}).param == "metadata.a"
