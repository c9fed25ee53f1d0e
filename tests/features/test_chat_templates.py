"""Many conversations at once over chat templates of well-known models."""

from pathlib import Path

import pytest
import trl
from transformers import AutoTokenizer

from fixtures.chats import TALK, THANKS, UNMARKED
from lorakit.data.chat import ChatEncoder
from lorakit.errors import ConfigError, DataError

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TALKS = [
    {"messages": TALK[1:]},
    {"messages": TALK[1:3]},
    {"messages": [*TALK[1:4], {**TALK[4], "weight": 0}, THANKS, TALK[2]]},
    {"messages": TALK[1:3], "tools": [TOOL]},
    {"messages": [{**message, "content": f" {message['content']} \n"} for message in TALK[1:]]},
]
CALLS = {
    "messages": [
        TALK[1],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "rain"},
        TALK[2],
    ],
    "tools": [TOOL],
}


@pytest.fixture
def tokenizer(tiny_llama_dir):
    return AutoTokenizer.from_pretrained(tiny_llama_dir)


def rendered_turn_by_turn(tokenizer, example, template):
    """Return what `apply_chat_template` gives of one conversation: its ids, and those that count.

    Written again from its definition, as a second opinion.
    """
    messages = [{k: v for k, v in m.items() if k != "weight"} for m in example["messages"]]
    options = {"tools": example.get("tools"), "return_dict": False}

    def ids(end, **more):
        return tokenizer.apply_chat_template(messages[:end], **options, **more)

    if template is not None:
        made = tokenizer.apply_chat_template(
            messages,
            tools=example.get("tools"),
            chat_template=template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        whole, counted = made["input_ids"], [bool(mark) for mark in made["assistant_masks"]]
        options["chat_template"] = template
    else:
        whole = ids(len(messages))
        counted = [False] * len(whole)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                start, end = len(ids(turn, add_generation_prompt=True)), len(ids(turn + 1))
                counted[start:end] = [True] * (end - start)
    for turn, message in enumerate(example["messages"]):
        if message.get("weight") == 0:
            start, end = len(ids(turn)) if turn else 0, len(ids(turn + 1))
            counted[start:end] = [False] * (end - start)
    return whole, counted


@pytest.mark.parametrize(
    "name", ["llama3", "gemma", "qwen2_5", "qwen3_instruct_2507", "cohere", "glm4moe"]
)
def test_many_conversations_are_rendered_as_each_alone(tokenizer, name):
    """Over templates of well-known models: with marks, without, and by differences of turns."""
    plain = (TEMPLATES / f"{name}.jinja").read_text()
    marked = (TEMPLATES / f"{name}_training.jinja").read_text()
    talks = [*TALKS, CALLS] if "tool_calls" in plain else TALKS
    for template, is_marked in ((marked, True), (plain, False), (UNMARKED, False)):
        tokenizer.chat_template = template
        encode = ChatEncoder(tokenizer, ["messages"], True, "tiny")
        if not is_marked:
            encode._marked_template = None
        used = encode._marked_template
        try:
            made = encode(talks)
        except ConfigError:  # this template renders earlier turns otherwise
            assert template is plain
            continue

        assert len(made) == len(talks)
        for one, example in zip(made, talks, strict=True):
            assert (one.ids, one.counted) == rendered_turn_by_turn(tokenizer, example, used)
        every = ChatEncoder(tokenizer, ["messages"], False, "tiny")(talks[:2])
        assert [one.ids for one in every] == [one.ids for one in made[:2]]


def test_a_conversation_that_is_refused_spoils_no_other(tokenizer):
    tokenizer.chat_template = UNMARKED.replace(
        "<|end|>",
        "{% if 'grey' in message['content'] %}{{ raise_exception('no grey') }}{% endif %}<|end|>",
    )
    encode = ChatEncoder(tokenizer, ["messages"], True, "tiny")
    grey = [TALK[1], {"role": "assistant", "content": "grey"}]

    with pytest.raises(DataError, match=r"starts with .*the sky.*: no grey"):
        encode([*TALKS[:2], {"messages": grey}])
    assert len(encode(TALKS[:2])) == 2
