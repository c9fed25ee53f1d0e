import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from lorakit.config import NOT_COUNTED
from lorakit.errors import ConfigError, DataError
from lorakit.training.tasks import base as module
from lorakit.training.tasks import task_for

TASK = "TOKEN_CLS"


def test_tags_are_numbered_with_o_first(prepare, tiny_bert_dir, ner_jsonl):
    made = prepare(TASK, tiny_bert_dir, ner_jsonl)

    assert made.labels == ("O", "B-LOC", "B-PER")
    assert made.model.config.id2label == {0: "O", 1: "B-LOC", 2: "B-PER"}


def test_only_the_first_token_of_a_word_counts(prepare, tiny_bert_dir, ner_jsonl):
    made = prepare(TASK, tiny_bert_dir, ner_jsonl)

    row = made.encoded.train[0]  # Anna lives in Oslo today
    tokens = made.tokenizer.convert_ids_to_tokens(row["input_ids"])
    pairs = zip(tokens, row["labels"], strict=True)
    counted = {token: made.labels[i] for token, i in pairs if i != NOT_COUNTED}

    words = made.splits.train[0]
    assert len(tokens) == len(row["labels"]) > len(words["tokens"]) + 2
    assert row["labels"][0] == row["labels"][-1] == NOT_COUNTED  # [CLS], [SEP]
    assert list(counted.values()) == words["tags"]
    assert not any(token.startswith("##") for token in counted)


def test_sample_rows_mark_the_counted_tokens(prepare, tiny_bert_dir, ner_jsonl):
    made = prepare(TASK, tiny_bert_dir, ner_jsonl)

    row = made.preview_examples(2)[1]

    assert sum(row.counted) == len(made.splits.train[1]["tokens"])
    assert row.tokens[0] == "[CLS]" and not row.counted[0]
    assert row.note.startswith("tags: ") and row.note.count("B-PER") == 1


@pytest.mark.parametrize("names", [None, ["O", "B-PER"]])
def test_integer_tags(prepare, tiny_bert_dir, tmp_path, names):
    tag = ClassLabel(names=names) if names else Value("int64")
    features = Features({"tokens": List(Value("string")), "tags": List(tag)})
    rows = [{"tokens": ["Anna", "saw"], "tags": [1, 0]}] * 8
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")

    made = prepare(TASK, tiny_bert_dir, str(tmp_path / "saved"))

    assert made.labels == (("O", "B-PER") if names else ("0", "1"))
    labels = [label for label in made.encoded.train[0]["labels"] if label != NOT_COUNTED]
    assert labels == [1, 0]


def test_byte_level_words_begin_with_their_space(prepare, tiny_gpt2_dir, ner_jsonl, monkeypatch):
    asked = {}

    def load(name, **options):
        asked.update(options)
        return original(name, **options)

    original = module.load_tokenizer
    monkeypatch.setattr(module, "load_tokenizer", load)

    made = prepare(TASK, tiny_gpt2_dir, ner_jsonl)

    assert asked["add_prefix_space"] is True  # the general class of tokenizers ignores it
    words = made.splits.train[0]["tokens"]
    ids = made.encoded.train[0]["input_ids"]
    assert made.tokenizer.decode(ids) == "".join(f" {word}" for word in words)
    assert made.model.config.pad_token_id == made.tokenizer.eos_token_id


def test_rows_that_lose_words_are_counted(prepare, tiny_bert_dir, ner_jsonl):
    made = prepare(TASK, tiny_bert_dir, ner_jsonl, max_length=5)

    assert (
        "24 of 24 training examples were cut to 5 tokens (data.max_length)." in made.encoded.notes
    )
    longest = max(len(row["tokens"]) for row in made.splits.train) * 4
    assert len(prepare(TASK, tiny_bert_dir, ner_jsonl, max_length=longest).encoded.notes) == 1


def test_trainer_finds_the_entities(prepare, tiny_bert_dir, ner_jsonl, tmp_path):
    made = prepare(TASK, tiny_bert_dir, ner_jsonl)
    trainer = made.trainer(tmp_path, num_train_epochs=8)

    trainer.train()
    metrics = trainer.evaluate()

    assert metrics["eval_f1"] == 1.0
    assert {"eval_accuracy", "eval_precision", "eval_recall"} <= set(metrics)


def message(prepare, model, path, kind=DataError, **data):
    with pytest.raises(kind) as caught:
        prepare(TASK, model, path, **data)
    return str(caught.value)


def test_words_and_tags_that_do_not_fit(prepare, tiny_bert_dir, jsonl):
    rows = [
        {"tokens": ["a", "b"], "tags": ["O", "O"]},
        {"tokens": ["a", "b", "c"], "tags": ["O", "O"]},
        {"tokens": [], "tags": []},
        {"tokens": ["a"], "tags": [None]},
    ]
    path = jsonl(rows)

    assert message(prepare, tiny_bert_dir, path, validation_fraction=0) == (
        f"Words and tags do not fit together in the training examples of '{path}', columns "
        "'tokens' and 'tags': example 2 (line 2): 3 words but 2 tags; example 3 (line 3): no "
        "words; example 4 (line 4): the tags are not a list of texts or integers; expected a list "
        "of words and as many tags in each example. Repair or remove these examples."
    )


def test_column_of_texts_instead_of_words(prepare, tiny_bert_dir, jsonl):
    path = jsonl([{"tokens": "a b", "tags": ["O", "O"]}] * 2)

    said = message(prepare, tiny_bert_dir, path, validation_fraction=0)

    assert "examples 1, 2 (lines 1, 2): the words are not a list of texts" in said


def test_missing_column(prepare, tiny_bert_dir, ner_jsonl):
    said = message(prepare, tiny_bert_dir, ner_jsonl, tags="ner_tags")

    assert "data.tags: got 'ner_tags', expected a column" in said
    assert "Columns of the data: tokens, tags." in said


def test_tag_unseen_in_training(prepare, tiny_bert_dir, ner_jsonl, jsonl):
    other = jsonl([{"tokens": ["Acme"], "tags": ["B-ORG"]}])

    said = message(prepare, tiny_bert_dir, ner_jsonl, validation=other)

    assert said.startswith(
        f"Labels unseen in training in the validation examples of '{other}', column 'tags': "
        "'B-ORG' in example 1. Labels of the training examples: B-LOC, B-PER, O."
    )


def test_words_without_a_token(prepare, tiny_bert_dir, jsonl):
    path = jsonl([{"tokens": ["\u200b"], "tags": ["O"]}] * 8)
    assert message(prepare, tiny_bert_dir, path, max_length=3) == (
        f"Nothing can be learnt from the training examples of '{path}': no word of 6 examples has "
        "a token within 3 tokens (data.max_length), so no tag counts in the loss. Raise "
        "data.max_length, or check the words."
    )


def test_slow_tokenizer(recipe_of, tiny_bert_dir, ner_jsonl, monkeypatch):
    class SlowTokenizer:
        is_fast = False

    monkeypatch.setattr(module, "load_tokenizer", lambda name, **options: SlowTokenizer())

    with pytest.raises(ConfigError) as caught:
        task_for(TASK).load_tokenizer(recipe_of(TASK, tiny_bert_dir, ner_jsonl))

    assert str(caught.value) == (
        f"The tokenizer of '{tiny_bert_dir}' in model cannot tag words: got the slow "
        "SlowTokenizer, expected a fast one, which knows the word of each token. Choose a model "
        "with a tokenizer.json."
    )
