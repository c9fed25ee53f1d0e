import json

import pyarrow as pa
import pytest
from datasets import Dataset

from lorakit.data import Place
from lorakit.data.conversations import (
    MalformedConversationError,
    check_conversations,
    drop_filled_nulls,
    parse_conversation,
    with_default_system,
    with_system_prompt,
)
from lorakit.data.reading.json_files import read_json
from lorakit.errors import DataError


def test_keys_a_table_has_filled_with_none_are_dropped():
    rows = Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "c", "name": "b"},
                ]
            }
        ]
    )

    assert parse_conversation(rows[0], "messages").messages == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "c", "name": "b"},
    ]


def test_malformed_conversations_are_listed():
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = [[user, assistant], [], [user], [{"role": "user"}, assistant], [user]]
    table = Dataset.from_list([{"talk": row} for row in rows])

    with pytest.raises(DataError) as caught:
        check_conversations(table, ["talk"], "the rows of 'x'")

    assert str(caught.value) == (
        "Conversations are malformed in the rows of 'x', column 'talk': example 2: not a list of "
        "messages; examples 3, 5: no message by 'assistant'; example 4: a message without content; "
        "expected a list of messages such as {'role': 'user', 'content': 'Hello'}, one of them by "
        "'assistant'. Repair or remove these examples."
    )


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"city": {"default": None}}}}


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], f" {json.dumps([TOOL])}\n"]
)
def test_tools_are_understood_as_list_and_as_json(tools):
    made = parse_conversation({"messages": [USER, ASSISTANT], "tools": tools}, "messages")

    assert made.options == {"tools": [TOOL]}


@pytest.mark.parametrize("variables", [{"style": "short"}, '{"style": "short"}'])
def test_template_variables_are_those_of_the_example(variables):
    row = {"messages": [USER, ASSISTANT], "tools": None, "chat_template_kwargs": variables}

    assert parse_conversation(row, "messages").options == {"style": "short"}


@pytest.mark.parametrize("nothing", [None, "", [], "[]", "null"])
def test_no_tools_are_no_option(nothing):
    row = {"messages": [USER, ASSISTANT], "tools": nothing, "chat_template_kwargs": None}

    assert parse_conversation(row, "messages").options == {}


def text_part(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": [text_part("a"), text_part("b")]}, USER | {"content": "ab"}),
        ({"role": "user", "content": ["a", "b"]}, USER | {"content": "ab"}),
        ({"role": "user", "content": [{**text_part("a"), "image": None}]}, USER),
        ({"role": "tool", "content": {"degrees": 3}}, {"role": "tool", "content": {"degrees": 3}}),
        ({"from": "human", "value": "a"}, USER),
        ({"from": "system", "value": "a"}, USER | {"role": "system"}),
        ({"from": "observation", "value": "a"}, USER | {"role": "tool"}),
        ({"role": "user", "content": "a", "name": None}, USER),
    ],
)
def test_messages_are_read_in_the_forms_they_come_in(message, expected):
    assert parse_conversation({"talk": [message, ASSISTANT]}, "talk").messages == [
        expected,
        ASSISTANT,
    ]
    assert parse_conversation({"talk": json.dumps([message, ASSISTANT])}, "talk").messages == [
        expected,
        ASSISTANT,
    ]


IMAGE = {"type": "image", "url": "x.png"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"talk": None}, "not a list of messages"),
        ({"talk": "hello"}, "messages is a string that is not JSON"),
        ({"talk": {"role": "user"}}, "not a list of messages"),
        ({"talk": ["hello"]}, "a message that is not a mapping"),
        ({"talk": [{"from": "human"}, ASSISTANT]}, "a message without content"),
        ({"talk": [{"from": 3, "value": "a"}, ASSISTANT]}, "a message without a role"),
        ({"talk": [USER | {"content": 3}, ASSISTANT]}, "a message whose content is int"),
        (
            {"talk": [USER | {"content": [IMAGE]}, ASSISTANT]},
            "a message with a part of type 'image'",
        ),
        ({"talk": [USER, ASSISTANT | {"weight": 0.5}]}, "a message of weight 0.5"),
        ({"talk": [USER, ASSISTANT | {"weight": "0"}]}, "a message of weight '0'"),
        (
            {"talk": [USER, ASSISTANT | {"tool_calls": "x"}]},
            "tool_calls is a string that is not JSON",
        ),
        ({"talk": [USER, ASSISTANT], "tools": "x"}, "tools is a string that is not JSON"),
        ({"talk": [USER, ASSISTANT], "tools": ["x"]}, "tools is a string that is not JSON"),
        ({"talk": [USER, ASSISTANT], "tools": 3}, "tools is not a list of mappings"),
        ({"talk": [USER, ASSISTANT], "tools": [3]}, "tools is not a list of mappings"),
        ({"talk": [USER, ASSISTANT], "chat_template_kwargs": [1]}, "is not a mapping"),
        (
            {"talk": [USER, ASSISTANT], "chat_template_kwargs": {"tokenize": False}},
            "sets 'tokenize', which is not a template variable",
        ),
    ],
)
def test_what_is_no_conversation_is_said(row, problem):
    with pytest.raises(MalformedConversationError) as caught:
        parse_conversation(row, "talk")

    assert problem in str(caught.value)


def calling(arguments):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


@pytest.mark.parametrize("arguments", ['{"city": "x"}', "{}", {"city": "x"}, None])
def test_arguments_of_tool_calls_stay_as_they_are(arguments):
    made = parse_conversation({"talk": [USER, calling(arguments)]}, "talk")

    assert made.messages[1]["tool_calls"][0]["function"]["arguments"] == arguments


def test_arguments_that_are_no_json_are_said_with_their_line(tmp_path):
    flat = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": ""}]}
    answers = [calling('{"city": "x"}'), calling("{city: x}"), flat, calling("[1]")]
    rows = [json.dumps({"talk": [USER, answer]}) for answer in answers]
    (tmp_path / "a.jsonl").write_text("\n\n".join(rows))
    read = read_json(tmp_path / "a.jsonl", "data.train")

    with pytest.raises(DataError) as caught:
        check_conversations(read.dataset, ["talk"], Place("'x'", lines=read.lines))

    assert (
        "examples 2, 3 (lines 3, 5): a tool call whose arguments are a string that is not JSON; "
        "example 4 (line 7): a tool call whose arguments are not a JSON object; expected"
    ) in str(caught.value)


def test_a_weight_of_0_is_kept_beside_the_messages():
    made = parse_conversation(
        {"talk": [USER, ASSISTANT | {"weight": 0}, USER | {"weight": None}, ASSISTANT]}, "talk"
    )

    assert made.untrained == {1}
    assert made.messages == [USER, ASSISTANT, USER, ASSISTANT]


def test_nulls_that_a_table_brought_are_taken_out_and_written_ones_stay(tmp_path):
    tools = [[{"name": "f", "p": {"city": "x"}}], [{"name": "g", "p": {"day": None}}]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"tools": t}) + "\n" for t in tools))
    written = read_json(tmp_path / "a.jsonl", "data.train").dataset
    table = Dataset(pa.table({"tools": pa.array(tools)}))
    assert table[0]["tools"][0]["p"] == {"city": "x", "day": None}

    assert [drop_filled_nulls(row, written.features) for row in written] == [
        {"tools": t} for t in tools
    ]
    assert drop_filled_nulls(table[0], table.features) == {"tools": tools[0]}
    assert drop_filled_nulls(table[1], table.features) == {"tools": [{"name": "g", "p": {}}]}


def test_prompt_and_completion_make_one_conversation():
    row = {
        "prompt": [USER, {**ASSISTANT, "weight": 0}, USER],
        "completion": json.dumps([ASSISTANT]),
    }

    made = parse_conversation(row, "prompt", "completion")

    assert made.messages == [USER, ASSISTANT, USER, ASSISTANT]
    assert (made.prompt_turns, made.untrained) == (3, {1})


def test_malformed_halves_of_a_conversation_are_listed_by_column():
    rows = [([USER], [USER]), ([], [ASSISTANT]), ([USER], [ASSISTANT]), ([USER], [])]
    table = Dataset.from_list([{"prompt": p, "completion": c} for p, c in rows])

    with pytest.raises(DataError) as caught:
        check_conversations(table, ["prompt", "completion"], "the rows of 'x'")

    assert str(caught.value) == (
        "Conversations are malformed in the rows of 'x', columns 'prompt' and 'completion': "
        "example 1: no message by 'assistant' in 'completion'; example 2: not a list of messages "
        "in 'prompt'; example 4: not a list of messages in 'completion'; expected a list of "
        "messages such as {'role': 'user', 'content': 'Hello'}, one of the completion by "
        "'assistant'. Repair or remove these examples."
    )


SYSTEM = {"role": "system", "content": "be brief"}


def test_a_system_prompt_is_put_before_the_first_message():
    marked = {**ASSISTANT, "weight": 0}
    one = parse_conversation({"talk": [USER, marked, USER, ASSISTANT]}, "talk")
    halves = parse_conversation(
        {"prompt": [USER], "completion": [ASSISTANT]}, "prompt", "completion"
    )

    made = with_system_prompt(one, "be brief")
    assert made.messages == [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]
    assert (made.untrained, made.prompt_turns) == ({2}, 0)
    assert with_system_prompt(halves, "be brief").prompt_turns == 2


def test_a_system_prompt_replaces_the_one_that_a_conversation_begins_with():
    old = {"role": "system", "content": "be long"}
    talk = parse_conversation({"talk": [old, USER, {**ASSISTANT, "weight": 0}, ASSISTANT]}, "talk")

    made = with_system_prompt(talk, "be brief")

    assert made.messages == [SYSTEM, USER, ASSISTANT, ASSISTANT]
    assert made.untrained == {2}


def test_a_request_keeps_its_own_system_message():
    ours = [{"role": "system", "content": "own"}, USER]

    assert with_default_system([USER], "be brief") == [SYSTEM, USER]
    assert with_default_system(ours, "be brief") == ours
    assert with_default_system([USER], None) == [USER]
