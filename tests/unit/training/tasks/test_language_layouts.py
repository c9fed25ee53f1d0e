import pytest

from lorakit.config import NOT_COUNTED
from lorakit.errors import ConfigError

TASK = "CAUSAL_LM"
TALK = [
    {"role": "user", "content": "the sky?"},
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "the grass?"},
    {"role": "assistant", "content": "green"},
]


def counted_text(made):
    labels = made.encoded.train[0]["labels"]
    return made.tokenizer.decode([label for label in labels if label != NOT_COUNTED])


def test_the_last_turn_and_a_system_prompt_come_from_the_recipe(prepare, tiny_llama_dir, jsonl):
    chats = jsonl([{"messages": TALK}] * 10)

    made = prepare(TASK, tiny_llama_dir, chats, turns="last", system_prompt="be brief")

    whole = made.tokenizer.decode(made.encoded.train[0]["input_ids"])
    assert whole.startswith("<|system|>be brief<|end|><|user|>the sky?")
    assert counted_text(made) == "green<|end|>"
    assert made.encoded.settings["system_prompt"] == "be brief"
    assert made.encoded.notes[-1] == "Only the last message of the assistant counts (data.turns)."
    assert counted_text(prepare(TASK, tiny_llama_dir, chats)) == "blue<|end|>green<|end|>"


def test_instructions_that_are_rendered_have_the_system_prompt(
    prepare, tiny_llama_dir, alpaca_jsonl
):
    made = prepare(TASK, tiny_llama_dir, alpaca_jsonl, system_prompt="be brief")

    whole = made.tokenizer.decode(made.encoded.train[0]["input_ids"])
    assert whole.startswith("<|system|>be brief<|end|><|user|>")


def message(prepare, model, path, **options):
    with pytest.raises(ConfigError) as caught:
        prepare(TASK, model, path, **options)
    return str(caught.value)


def test_texts_have_no_turns_and_no_system_prompt(prepare, tiny_gpt2_dir, text_jsonl):
    said = message(prepare, tiny_gpt2_dir, text_jsonl, turns="last", system_prompt="be brief")

    assert said == (
        "Only conversations have turns and system prompts: got data.turns and data.system_prompt "
        "for examples read as 'text', which are not rendered with a chat template, expected "
        "'messages'. Leave it out."
    )


@pytest.mark.parametrize("key", ["assistant_only_loss", "completion_only_loss"])
def test_more_than_the_last_turn_cannot_count_with_it(prepare, tiny_llama_dir, chat_jsonl, key):
    said = message(prepare, tiny_llama_dir, chat_jsonl, turns="last", training={key: False})

    assert said == (
        "Two keys contradict each other about the tokens that count: got data.turns=last and "
        f"training.{key}=false, which counts more than the last turn, expected one of them. Leave "
        "the other out."
    )


INSTRUCTIONS = [
    {"instruction": "name the colour", "input": given, "output": "blue"} for given in ("sky", "")
]
PROMPTS = [{"prompt": f"the {word}", "completion": f" is {word}"} for word in ("sky", "cat")]
CHATS = [{"messages": TALK}, {"messages": TALK[:2]}]


@pytest.mark.parametrize("counts_prompts", [False, True])
@pytest.mark.parametrize(
    ("examples", "model"),
    [
        (INSTRUCTIONS, "tiny_llama_dir"),
        (INSTRUCTIONS, "tiny_gpt2_dir"),  # it has no chat template
        (PROMPTS, "tiny_llama_dir"),
        (CHATS, "tiny_llama_dir"),
    ],
)
def test_a_batch_is_encoded_as_its_examples_are(
    request, prepare, jsonl, examples, model, counts_prompts
):
    from lorakit.data.text_formats import find_layout
    from lorakit.training.tasks.language_layouts import layout_encoder

    training = {} if not counts_prompts else {"completion_only_loss": False}
    model_dir = request.getfixturevalue(model)
    made = prepare(TASK, model_dir, jsonl(examples * 6), training=training)
    layout = find_layout(made.splits.train, made.recipe.data, "the examples")
    encode = layout_encoder(layout, made.recipe, made.tokenizer)

    one_by_one = [
        one
        for example in made.splits.train
        for one in encode({name: [value] for name, value in example.items()})
    ]
    assert encode(made.splits.train[:]) == one_by_one
    assert len({tuple(one.ids) for one in one_by_one}) == 2
