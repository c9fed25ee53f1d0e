"""Numbers of tokens of the longest texts."""

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from lorakit.data.text_lengths import (
    join_texts,
    longest_conversation,
    longest_text,
    round_up_length,
)

TALKS = [
    [{"role": "user", "content": "the sky?"}, {"role": "assistant", "content": "blue"}],
    [{"role": "user", "content": "the grass?"}, {"role": "assistant", "content": "green " * 20}],
]


@pytest.fixture
def llama(tiny_llama_dir):
    return AutoTokenizer.from_pretrained(tiny_llama_dir)


def test_all_texts_of_an_example_are_joined_with_room_for_a_template():
    examples = Dataset.from_dict({"a": ["x", "y"], "b": [["p", "q"], []], "n": [1, 2]})
    assert join_texts(examples, ["a", "b", "n"]) == ["x p q ", "y  "]
    talks = Dataset.from_dict({"messages": [TALKS[0]]})
    (text,) = join_texts(talks, ["messages"])
    assert text.split() == [
        *["x"] * 8,
        *("user", "the", "sky?"),
        *["x"] * 8,
        *("assistant", "blue"),
    ]


def test_the_longest_is_counted_with_its_end_or_estimated_from_its_bytes(llama):
    texts = ["the grass", "the sky is blue", ""]
    assert longest_text(texts, llama) == len(llama("the sky is blue")["input_ids"]) + 1
    assert longest_text(["名" * 30, "x" * 30], None) == 30 + 2


def test_a_conversation_has_the_tokens_of_its_template(llama):
    examples = Dataset.from_dict({"messages": TALKS})
    texts = join_texts(examples, ["messages"])
    expected = llama.apply_chat_template(TALKS[1], return_dict=True)["input_ids"]

    assert longest_conversation(examples, ["messages"], texts, llama) == len(expected)
    llama.chat_template = "{{ raise_exception('no') }}"
    assert longest_conversation(examples, ["messages"], texts, llama) == longest_text(texts, llama)


def test_a_truncation_length_keeps_the_tokens():
    assert [round_up_length(n) for n in (0, 1, 8, 9)] == [8, 8, 8, 16]
