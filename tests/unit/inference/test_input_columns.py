"""Which columns are the inputs of an adapter."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from lorakit.config import TaskType
from lorakit.errors import DataError
from lorakit.inference import InferenceSettings
from lorakit.inference.input_columns import find_input_columns
from lorakit.recipes.recipe import DataConfig

DATA = DataConfig(train="-")


def adapter(task, **settings):
    return SimpleNamespace(task_type=TaskType(task), settings=InferenceSettings(**settings))


def inputs_of(loaded, rows, data=DATA):
    found = find_input_columns(loaded, Dataset.from_list(rows), data)
    return [found.input_of(row, number, "the file") for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    "loaded, row, given",
    [
        (adapter("SEQ_CLS"), {"id": "1", "text": "good"}, "good"),
        (adapter("SEQ_CLS", text_pair=True), {"text": "a", "text_pair": "b"}, ("a", "b")),
        (adapter("TOKEN_CLS"), {"id": "1", "tokens": ["a", "b"]}, ["a", "b"]),
        (adapter("TOKEN_CLS"), {"id": "1", "text": "a b"}, "a b"),
        (adapter("SEQ_2_SEQ_LM"), {"source": "a", "target": "b"}, "a"),
        (adapter("CAUSAL_LM", format="text"), {"id": "1", "text": "a"}, "a"),
        (adapter("CAUSAL_LM", format="text"), {"prompt": "a", "text": "b"}, "a"),
        (adapter("CAUSAL_LM", format="prompt_completion"), {"prompt": "a", "completion": "b"}, "a"),
        (adapter("CAUSAL_LM", format="alpaca"), {"instruction": "a", "input": ""}, "a"),
        (adapter("CAUSAL_LM", format="alpaca"), {"instruction": "a", "input": "b"}, ("a", "b")),
        (adapter("CAUSAL_LM", format="messages"), {"instruction": "a", "input": "b"}, "a\n\nb"),
        (adapter("CAUSAL_LM", format="messages"), {"instruction": "a", "input": None}, "a"),
        (adapter("CAUSAL_LM", format="messages"), {"prompt": "a", "n": "b"}, "a"),
    ],
)
def test_each_task_has_its_columns(loaded, row, given):
    assert inputs_of(loaded, [row]) == [given]


def test_an_answer_at_the_end_of_a_conversation_is_the_model_s_to_give():
    question = [{"role": "user", "content": "a"}]
    answered = [*question, {"role": "assistant", "content": "b"}]
    rows = [{"messages": question}, {"messages": answered}]
    assert inputs_of(adapter("CAUSAL_LM", format="messages"), rows) == [question, question]


@pytest.mark.parametrize(
    "row",
    [
        {"talk": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "n": "1"},
        {"messages": '[{"role": "user", "content": "a"}]'},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "n": "1"},
    ],
)
def test_conversations_are_read_as_in_training(row):
    question = [{"role": "user", "content": "a"}]
    assert inputs_of(adapter("CAUSAL_LM", format="messages"), [row]) == [question]


def test_tools_that_are_not_read_are_named():
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "a"}], "tools": "[]"}])
    chats, texts = (adapter("CAUSAL_LM", format=kind) for kind in ("messages", "text"))
    assert "is not given 'tools'" in find_input_columns(chats, rows, DATA).notes[0]
    named = DataConfig(train="-", text="tools")
    assert find_input_columns(texts, rows, named).notes == ()


def test_what_is_no_conversation_is_named():
    rows = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"content": "a"}]}]
    rows[1]["messages"][0] |= {"role": 1}
    found = find_input_columns(
        adapter("CAUSAL_LM", format="messages"), Dataset.from_list(rows[:1]), DATA
    )
    with pytest.raises(DataError, match="example 2 of the file: got a message without a role"):
        found.input_of(rows[1], 2, "the file")


def test_what_is_missing_is_no_input():
    rows = [{"text": "a", "text_pair": "b"}, {"text": "a", "text_pair": None}]
    assert inputs_of(adapter("SEQ_CLS", text_pair=True), rows) == [("a", "b"), None]


def test_a_missing_column_is_named_with_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'texts'"):
        inputs_of(adapter("SEQ_CLS"), [{"texts": "a", "n": "b"}])
