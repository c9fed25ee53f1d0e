"""The messages of a conversation, and the file it is saved to."""

import json

import pytest

from lorakit.cli.chatting.conversation import Conversation, Exchange
from lorakit.errors import DataError


def held(**options):
    exchanges = [Exchange("one", "1", "uno"), Exchange("two", "2")]
    return Conversation(exchanges=exchanges, **options)


def contents(messages):
    return [each["content"] for each in messages]


def test_each_side_sees_its_earlier_answers():
    conversation = held(system="be short")
    assert contents(conversation.messages("three")) == ["be short", "one", "1", "two", "2", "three"]
    of_base = conversation.messages("three", of_base=True)
    assert contents(of_base) == ["be short", "one", "uno", "two", "2", "three"]
    assert [each["role"] for each in of_base[:3]] == ["system", "user", "assistant"]


def test_without_history_a_question_stands_alone():
    assert held(has_history=False).messages("three") == [{"role": "user", "content": "three"}]


def test_a_saved_conversation_is_an_example_that_a_run_can_be_trained_on(tmp_path):
    from lorakit.data import load_splits
    from lorakit.recipes.recipe import DataConfig

    file = tmp_path / "chats.jsonl"
    assert held().save(file) == 1
    other = held(system="be short")
    other.save(file)
    splits = load_splits(DataConfig(train=str(file), validation_fraction=0), 42)
    assert [len(example["messages"]) for example in splits.train] == [4, 5]


def test_saving_again_replaces_the_lines_of_this_conversation_alone(tmp_path):
    file = tmp_path / "chats.jsonl"
    held().save(file)
    conversation = held()
    assert conversation.save(file) == 2
    conversation.exchanges.append(Exchange("three", "drei\n\u2028"))
    assert conversation.save(file) == 2
    *_, last = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
    assert contents(last["messages"])[-1] == "drei\n\u2028"
    conversation.clear()
    conversation.exchanges.append(Exchange("four", "4"))
    assert conversation.save(file) == 3


def test_without_history_each_exchange_is_an_example(tmp_path):
    assert held(has_history=False).save(tmp_path / "chats.jsonl") == 2


def test_what_cannot_be_saved_is_told(tmp_path):
    with pytest.raises(DataError, match="Nothing to save"):
        Conversation().save(tmp_path / "x")
    for content in (b"notes", b'{"messages": []}', b'{"text": 1}\n', b"\xff\n", b"\n"):
        file = tmp_path / "notes.txt"
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"Cannot add the conversation to .*notes\.txt"):
            held().save(file)
        assert file.read_bytes() == content
    with pytest.raises(Exception, match="none"):
        held().save(tmp_path / "none" / "chats.jsonl")
