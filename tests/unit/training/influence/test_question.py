"""What is asked, as an encoded example."""

import pytest

from lorakit.errors import ConfigError
from lorakit.training.influence.question import encode_answer
from lorakit.training.setup import prepare


@pytest.fixture
def setup_of(recipe, jsonl):
    def make(rows, **data):
        made = recipe(data={"train": jsonl(rows), "validation_fraction": 0, **data})
        return prepare(made, lambda name, payload: None)

    return make


@pytest.mark.parametrize(
    ("rows", "prompt"),
    [
        ([{"text": "the cat"}, {"text": "the dog"}], None),
        ([{"prompt": "a", "completion": " b"}, {"prompt": "c", "completion": " d"}], "the "),
        ([{"instruction": "a", "input": "", "output": "b"}] * 2, "say"),
        (
            [
                {
                    "messages": [
                        {"role": "user", "content": "a"},
                        {"role": "assistant", "content": "b"},
                    ]
                }
            ]
            * 2,
            "say",
        ),
    ],
)
def test_an_answer_is_encoded_in_the_layout_of_the_examples(setup_of, rows, prompt):
    setup = setup_of(rows)
    encoded, about = encode_answer(setup, "cat", prompt, None)
    assert about == "Looking at the answer."
    assert len(encoded) == 1
    text = setup.tokenizer.decode(encoded[0]["input_ids"])
    assert "cat" in text and (prompt or "").strip() in text
    if prompt is not None:
        assert -100 in encoded[0]["labels"] or "messages" in rows[0]
        with pytest.raises(ConfigError, match="The answer needs a prompt: got no --prompt"):
            encode_answer(setup, "cat", None, None)


def test_tags_are_asked_about_by_their_mistakes(recipe_of, tiny_bert_dir, jsonl):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "X"]}] * 4
    made = recipe_of("TOKEN_CLS", tiny_bert_dir, jsonl(rows), training={"use_cpu": True})
    setup = prepare(made, lambda name, payload: None)
    with pytest.raises(ConfigError, match="An answer cannot be named for a run of TOKEN_CLS"):
        encode_answer(setup, "a", None, None)
