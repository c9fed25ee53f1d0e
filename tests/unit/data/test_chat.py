import json

import pytest
from transformers import AutoTokenizer

from fixtures.chats import TALK, THANKS, UNMARKED
from lorakit.data.chat import ChatEncoder, read_template, wants_content_parts
from lorakit.errors import ConfigError, DataError, MissingFileError

STOP_OUTSIDE = UNMARKED.replace(
    "{{ message['content'] }}",
    "{% generation %}{{ message['content'] }}{% endgeneration %}",
)
# Says how many messages there are, so that a longer conversation starts differently.
COUNTING = "{{ messages|length }}" + UNMARKED


@pytest.fixture
def tokenizer(tiny_llama_dir):
    return AutoTokenizer.from_pretrained(tiny_llama_dir)


def counted_text(tokenizer, messages=TALK, **options):
    names = ("assistant_only", "last_turn_only", "system_prompt")
    chosen = {name: options.pop(name) for name in names if name in options}
    encoder = ChatEncoder(
        tokenizer, ["messages"], name="tiny", **{"assistant_only": True, **chosen}
    )
    (made,) = encoder([{"messages": messages, **options}])
    ids = [i for i, c in zip(made.ids, made.counted, strict=True) if c]
    return tokenizer.decode(made.ids), tokenizer.decode(ids)


def test_marked_template_counts_the_assistant_and_its_end(tokenizer):
    whole, counted = counted_text(tokenizer)

    assert whole == (
        "<|system|>answer<|end|><|user|>the sky?<|end|><|assistant|>blue<|end|>"
        "<|user|>the grass?<|end|><|assistant|>green<|end|>"
    )
    assert counted == "blue<|end|>green<|end|>"


@pytest.mark.parametrize("template", [UNMARKED, STOP_OUTSIDE])
def test_other_templates_count_what_each_message_adds(tokenizer, template):
    tokenizer.chat_template = template

    assert counted_text(tokenizer)[1] == "blue<|end|>green<|end|>"


def test_every_token_counts_when_asked_to(tokenizer):
    whole, counted = counted_text(tokenizer, assistant_only=False)

    assert counted == whole


def test_template_that_gives_no_way_to_tell(tokenizer):
    tokenizer.chat_template = COUNTING

    with pytest.raises(ConfigError) as caught:
        counted_text(tokenizer)

    assert str(caught.value) == (
        "The assistant's tokens cannot be identified: the chat template of 'tiny' has no "
        "{% generation %} markers around them (with the end-of-turn token inside), and it renders "
        "a conversation differently once more messages follow. Add the markers and name the "
        "template in training.chat_template_path, or set training.assistant_only_loss=false to "
        "count every token."
    )


def test_tokenizer_without_a_template(tokenizer):
    tokenizer.chat_template = None

    with pytest.raises(ConfigError) as caught:
        counted_text(tokenizer)

    assert str(caught.value).startswith(
        "Messages cannot be rendered: the tokenizer of 'tiny' in model has no chat template. Name "
        "a Jinja file in training.chat_template_path"
    )


def test_conversation_the_template_refuses(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system message') }}"

    with pytest.raises(DataError) as caught:
        counted_text(tokenizer, assistant_only=False)

    assert str(caught.value) == (
        "The chat template of 'tiny' refuses a conversation in column 'messages' that starts with "
        "{'role': 'system', 'content': 'answer'}: no system message. Repair or remove it."
    )


def test_sharegpt_messages(tokenizer):
    talk = [{"from": "human", "value": "the sky?"}, {"from": "gpt", "value": "blue"}]

    assert counted_text(tokenizer, talk)[1] == "blue<|end|>"


def test_template_file(tmp_path):
    (tmp_path / "chat.jinja").write_text(UNMARKED, encoding="utf-8")

    assert read_template(str(tmp_path / "chat.jinja")) == UNMARKED
    with pytest.raises(MissingFileError) as caught:
        read_template("none.jinja")
    assert str(caught.value) == (
        "No chat template in training.chat_template_path: got 'none.jinja', expected a Jinja file "
        "that exists. Check the path; it is relative to the current directory."
    )


WITH_TOOLS = "{% for tool in tools or [] %}<|system|>{{ tool | tojson }}{% endfor %}" + UNMARKED
STYLED = "{{ style | default('plain') }}" + UNMARKED
PARTS_ONLY = UNMARKED.replace(
    "{{ message['content'] }}", "{% for part in message['content'] %}{{ part.text }}{% endfor %}"
)


@pytest.mark.parametrize("kind", [list, str])
def test_tools_and_template_variables_reach_the_template(tokenizer, kind):
    tokenizer.chat_template = WITH_TOOLS
    tools = [{"name": "f", "city": None}]

    whole, counted = counted_text(tokenizer, tools=tools if kind is list else json.dumps(tools))

    assert whole.startswith('<|system|>{"name": "f", "city": null}<|system|>answer')
    assert counted == "blue<|end|>green<|end|>"
    tokenizer.chat_template = STYLED
    styled, _ = counted_text(tokenizer, chat_template_kwargs={"style": "short"})
    assert styled.startswith("short<|system|>")


@pytest.mark.parametrize("template", [None, UNMARKED, STOP_OUTSIDE])
@pytest.mark.parametrize(
    ("turn", "expected"), [(2, "green<|end|>"), (4, "blue<|end|>"), (1, "blue<|end|>green<|end|>")]
)
def test_no_token_of_a_message_of_weight_0_counts(tokenizer, template, turn, expected):
    if template is not None:
        tokenizer.chat_template = template
    talk = [message | ({"weight": 0} if at == turn else {}) for at, message in enumerate(TALK)]

    whole, counted = counted_text(tokenizer, talk)

    assert counted == expected
    assert whole == counted_text(tokenizer)[0]
    everything, all_counted = counted_text(tokenizer, talk, assistant_only=False)
    rendered = f"<|{TALK[turn]['role']}|>{TALK[turn]['content']}<|end|>"
    assert all_counted == everything.replace(rendered, "")


def test_a_weight_that_cannot_be_honoured(tokenizer):
    tokenizer.chat_template = COUNTING
    talk = [*TALK[:2], TALK[2] | {"weight": 0}, *TALK[3:]]

    with pytest.raises(ConfigError, match=r"^A message of weight 0 cannot be left out: the chat"):
        counted_text(tokenizer, talk, assistant_only=False)


def test_texts_become_parts_for_a_template_that_shows_nothing_else(tokenizer):
    expected = counted_text(tokenizer)
    parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in TALK]

    assert not wants_content_parts(tokenizer)
    assert counted_text(tokenizer, parts) == expected
    tokenizer.chat_template = PARTS_ONLY
    assert wants_content_parts(tokenizer)
    assert counted_text(tokenizer) == counted_text(tokenizer, parts) == expected


@pytest.mark.parametrize("template", ["{{ messages[0].content + 1 }}", "{{ messages[9].x.y }}"])
def test_a_template_that_fails_is_reported_like_one_that_refuses(tokenizer, template):
    tokenizer.chat_template = template

    with pytest.raises(DataError, match=r"^The chat template of 'tiny' refuses a conversation"):
        counted_text(tokenizer, assistant_only=False)


def counted_of_a_completion(tokenizer, prompt_turns, assistant_only=True, **options):
    columns = ["prompt", "completion"]
    encoder = ChatEncoder(tokenizer, columns, assistant_only, "tiny", **options)
    (made,) = encoder([{"prompt": TALK[:prompt_turns], "completion": TALK[prompt_turns:]}])
    assert tokenizer.decode(made.ids) == counted_text(tokenizer, assistant_only=False)[0]
    return tokenizer.decode([i for i, c in zip(made.ids, made.counted, strict=True) if c])


@pytest.mark.parametrize("template", [None, UNMARKED, STOP_OUTSIDE])
@pytest.mark.parametrize(
    ("turns", "answers", "completion"),
    [
        (4, "green<|end|>", "green<|end|>"),
        (
            2,
            "blue<|end|>green<|end|>",
            "blue<|end|><|user|>the grass?<|end|><|assistant|>green<|end|>",
        ),
        (3, "green<|end|>", "<|user|>the grass?<|end|><|assistant|>green<|end|>"),
    ],
)
def test_of_a_prompt_of_messages_nothing_counts(tokenizer, template, turns, answers, completion):
    tokenizer.chat_template = template or tokenizer.chat_template

    assert counted_of_a_completion(tokenizer, turns) == answers
    assert counted_of_a_completion(tokenizer, turns, assistant_only=False) == completion


@pytest.mark.parametrize("template", [None, UNMARKED])
def test_prompts_of_messages_count_when_asked_to(tokenizer, template):
    tokenizer.chat_template = template or tokenizer.chat_template

    counted = counted_of_a_completion(tokenizer, 4, counts_prompts=True)

    assert counted == "blue<|end|>green<|end|>"


def test_a_prompt_that_is_rendered_otherwise_before_a_completion(tokenizer):
    tokenizer.chat_template = COUNTING

    with pytest.raises(ConfigError) as caught:
        counted_of_a_completion(tokenizer, 4, assistant_only=False)

    assert str(caught.value).startswith(
        "The completion cannot be separated from the prompt: the chat template of 'tiny' renders "
        "the prompt differently once the completion follows."
    )


FORGETFUL = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if loop.last or message['role'] != 'assistant' %}{{ message['content'] }}{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Leaves earlier answers out, as templates do with thoughts."""
LAST_ANSWER = "green<|end|>"


@pytest.mark.parametrize(
    ("template", "after"),
    [
        (None, []),
        (UNMARKED, []),
        (STOP_OUTSIDE, []),
        (FORGETFUL, []),
        (None, [THANKS]),
        (UNMARKED, [THANKS]),
    ],
)
def test_the_last_turn_alone_counts(tokenizer, template, after):
    tokenizer.chat_template = template or tokenizer.chat_template

    whole, counted = counted_text(tokenizer, [*TALK, *after], last_turn_only=True)

    assert counted == LAST_ANSWER
    assert whole == counted_text(tokenizer, [*TALK, *after], assistant_only=False)[0]


def test_a_last_turn_of_weight_0_leaves_nothing_to_count(tokenizer):
    talk = [*TALK[:-1], {**TALK[-1], "weight": 0}]

    assert counted_text(tokenizer, talk, last_turn_only=True)[1] == ""


def test_the_last_turn_of_a_completion_alone_counts(tokenizer):
    counted = counted_of_a_completion(tokenizer, 2, last_turn_only=True)

    assert counted == LAST_ANSWER


def test_a_last_turn_that_cannot_be_told_from_the_turns_before(tokenizer):
    marked = STOP_OUTSIDE.replace("<|end|>", "").replace(
        "{% endgeneration %}", "<|end|>{% endgeneration %}"
    )
    tokenizer.chat_template = "{{ messages|length }}" + marked

    with pytest.raises(ConfigError) as caught:
        counted_text(tokenizer, last_turn_only=True)

    assert str(caught.value) == (
        "The last turn cannot be separated from the turns before it: the chat template of 'tiny' "
        "renders these differently once an answer follows. Name a template that does not in "
        "training.chat_template_path, or leave data.turns out to count all turns."
    )


@pytest.mark.parametrize("template", [None, UNMARKED])
@pytest.mark.parametrize("talk", [TALK, TALK[1:]])
def test_a_system_prompt_is_rendered_in_every_conversation(tokenizer, template, talk):
    tokenizer.chat_template = template or tokenizer.chat_template

    whole, counted = counted_text(tokenizer, talk, system_prompt="be brief")

    assert whole.startswith("<|system|>be brief<|end|><|user|>the sky?")
    assert "answer<|end|>" not in whole
    assert counted == "blue<|end|>green<|end|>"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}",
            ": none",
        ),
        ("{% for message in messages if message['role'] != 'system' %}x{% endfor %}", ""),
    ],
)
def test_a_template_without_system_messages_takes_no_system_prompt(tokenizer, template, why):
    tokenizer.chat_template = template

    with pytest.raises(ConfigError) as caught:
        counted_text(tokenizer, system_prompt="be brief")

    assert str(caught.value) == (
        "The system prompt cannot be rendered: got data.system_prompt, but the chat template of "
        f"'tiny' has no system messages{why}. Leave it out, or name a template that has them in "
        "training.chat_template_path."
    )
