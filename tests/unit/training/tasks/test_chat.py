import pytest
from transformers import AutoTokenizer

from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.training.tasks.chat import ChatEncoder, read_template

UNMARKED = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STOP_OUTSIDE = UNMARKED.replace(
    "{{ message['content'] }}",
    "{% generation %}{{ message['content'] }}{% endgeneration %}",
)
# Says how many messages there are, so that a longer conversation starts differently.
COUNTING = "{{ messages|length }}" + UNMARKED

TALK = [
    {"role": "system", "content": "answer"},
    {"role": "user", "content": "the sky?"},
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "the grass?"},
    {"role": "assistant", "content": "green"},
]


@pytest.fixture
def tokenizer(tiny_llama_dir):
    return AutoTokenizer.from_pretrained(tiny_llama_dir)


def counted_text(tokenizer, messages=TALK, **options):
    encoder = ChatEncoder(tokenizer, "messages", options.pop("assistant_only", True), "tiny")
    made = encoder({"messages": messages, **options})
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
        "The assistant's tokens cannot be told from the others: the chat template of 'tiny' has no "
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
        "that is there. Check the path; it is taken from the current directory."
    )
