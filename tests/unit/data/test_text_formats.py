import pytest
from transformers import AutoTokenizer

from lorakit.data.text_formats import (
    answers_ids,
    completions_ids,
    detect_format,
    require_end_token,
    texts_ids,
)
from lorakit.errors import ConfigError, DataError
from lorakit.recipes.recipe import DataConfig


@pytest.fixture(scope="module")
def tokenizer(tiny_gpt2_dir):
    return AutoTokenizer.from_pretrained(tiny_gpt2_dir)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["text"], "text"),
        (["prompt", "completion", "id"], "prompt_completion"),
        (["messages"], "messages"),
        (["instruction", "input", "output", "text"], "alpaca"),
        (["instruction", "output"], "alpaca"),
        (["prompt", "prompt_id", "messages"], "messages"),
    ],
)
def test_layout_is_seen_from_the_columns(columns, expected):
    assert detect_format(columns, DataConfig(train="x"), "the rows") == expected


def test_layout_is_the_recipes_and_columns_can_be_renamed():
    assert detect_format(["messages"], DataConfig(train="x", format="text"), "") == "text"
    data = DataConfig(train="x", prompt="question", completion="answer")
    assert detect_format(["question", "answer"], data, "") == "prompt_completion"


def test_no_layout_fits():
    with pytest.raises(DataError) as caught:
        detect_format(["question", "answer"], DataConfig(train="x"), "the rows of 'x'")

    assert str(caught.value) == (
        "No known layout in the rows of 'x': got the columns question, answer, expected those of "
        "one of these: messages: messages; prompt_completion: prompt, completion; alpaca: "
        "instruction, output; text: text. Name your columns in the recipe, such as "
        "data.text=question."
    )


def test_text_ends_with_the_end_token_once(tokenizer):
    made, ended = texts_ids(tokenizer, ["grass is green", "grass</s>"])

    assert tokenizer.decode(made.ids) == "grass is green</s>"
    assert all(made.counted)
    assert tokenizer.decode(ended.ids) == "grass</s>"


def test_completion_and_end_count_and_the_prompt_does_not(tokenizer):
    (made,) = completions_ids(tokenizer, ["the grass is"], [" green"])

    counted = [i for i, c in zip(made.ids, made.counted, strict=True) if c]
    assert tokenizer.decode(made.ids) == "the grass is green</s>"
    assert tokenizer.decode(counted) == " green</s>"


def test_token_over_the_border_belongs_to_the_completion(tokenizer):
    (made,) = completions_ids(tokenizer, ["the gra"], ["ss"])

    pieces = tokenizer.convert_ids_to_tokens(made.ids)
    assert dict(zip(pieces, made.counted, strict=True))["Ġgrass"] is True


def test_tokenizer_without_an_end(tokenizer):
    copied = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    copied.eos_token = None

    with pytest.raises(ConfigError) as caught:
        require_end_token(copied)

    assert str(caught.value) == (
        "Texts have no end token: the tokenizer in model has no eos_token, so the model would "
        "not learn to stop. Name a token of its vocabulary in training.eos_token."
    )


def test_texts_are_encoded_at_once_as_one_by_one(tiny_llama_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    texts = ["good film", "", "the cat</s>", "a dog " * 5]

    one_by_one = [made for text in texts for made in texts_ids(tokenizer, [text])]
    assert texts_ids(tokenizer, texts) == one_by_one


def test_prompts_at_once_are_encoded_as_one_by_one(tiny_llama_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    prompts = ["the sky is", "", "the c", "<s>who? ", "a dog " * 5]
    answers = [" blue", "good", "at</s>", "Anna</s></s>", ""]
    pairs = list(zip(prompts, answers, strict=True))

    one_by_one = [made for p, a in pairs for made in completions_ids(tokenizer, [p], [a])]
    assert completions_ids(tokenizer, prompts, answers) == one_by_one
    others = answers[::-1]
    both = [one_by_one, completions_ids(tokenizer, prompts, others)]
    assert answers_ids(tokenizer, prompts, answers, others) == both
    whole = completions_ids(tokenizer, prompts, answers, counts_prompts=True)
    assert [one.ids for one in whole] == [one.ids for one in one_by_one]
    assert all(all(one.counted) for one in whole)
