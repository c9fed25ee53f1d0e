import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lorakit.errors import ConfigError, DataError

TASK = "SEQ_CLS"


def test_text_labels_are_numbered_in_sorted_order(prepare, tiny_distilbert_dir, cls_csv):
    made = prepare(TASK, tiny_distilbert_dir, cls_csv)

    assert made.labels == ("negative", "positive")
    assert made.model.config.id2label == {0: "negative", 1: "positive"}
    assert made.model.config.label2id == {"negative": 0, "positive": 1}
    expected = [made.labels.index(name) for name in made.splits.train["label"]]
    assert made.encoded.train["labels"][:] == expected


def test_integer_and_boolean_labels(prepare, tiny_distilbert_dir, jsonl):
    numbers = jsonl([{"text": "good film", "label": i % 11} for i in range(44)], "numbers.jsonl")
    truths = jsonl([{"text": "bad film", "label": i % 2 == 0} for i in range(8)], "truths.jsonl")

    assert prepare(TASK, tiny_distilbert_dir, numbers).labels == tuple(map(str, range(11)))
    assert prepare(TASK, tiny_distilbert_dir, truths).labels == ("False", "True")


def test_class_label_feature_sets_names_and_order(prepare, tiny_distilbert_dir, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no", "eh"])})
    rows = [{"text": "good film", "label": i % 3} for i in range(12)]
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")

    made = prepare(TASK, tiny_distilbert_dir, str(tmp_path / "saved"))

    assert made.labels == ("yes", "no", "eh")
    assert made.encoded.train["labels"][:] == made.splits.train["label"][:]


def test_text_pairs_are_joined_by_the_tokenizer(prepare, tiny_bert_dir, jsonl):
    rows = [{"a": "the cat", "b": "the dog", "label": "xy"[i % 2]} for i in range(8)]

    made = prepare(TASK, tiny_bert_dir, jsonl(rows), text="a", text_pair="b")

    tokens = made.preview_examples(1)[0].tokens
    assert tokens == ["[CLS]", "the", "cat", "[SEP]", "the", "dog", "[SEP]"]
    assert made.encoded.train[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert made.encoded.settings["text_pair"] is True


def test_sample_rows_are_those_of_the_batch(prepare, tiny_distilbert_dir, cls_csv):
    made = prepare(TASK, tiny_distilbert_dir, cls_csv)

    row = made.preview_examples(1)[0]

    words = made.splits.train[0]["text"].split()
    assert row.tokens == ["[CLS]", *words, "[SEP]"]
    assert not any(row.counted)
    assert row.note == f"label: {made.splits.train[0]['label']}"


def test_long_rows_are_cut_and_counted(prepare, tiny_distilbert_dir, cls_csv):
    made = prepare(TASK, tiny_distilbert_dir, cls_csv, max_length=5)

    assert {len(ids) for ids in made.encoded.train["input_ids"]} == {5}
    assert made.encoded.notes[1:] == (
        "36 of 36 training examples were cut to 5 tokens (data.max_length).",
        "12 of 12 validation examples were cut to 5 tokens (data.max_length).",
    )
    exact = prepare(TASK, tiny_distilbert_dir, cls_csv, max_length=7)
    assert len(exact.encoded.notes) == 1  # rows of 7 tokens lose nothing


def test_trainer_learns_and_measures(prepare, tiny_distilbert_dir, cls_csv, tmp_path):
    made = prepare(TASK, tiny_distilbert_dir, cls_csv)
    trainer = made.trainer(tmp_path, num_train_epochs=6)

    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()

    assert after["eval_loss"] < 0.5 * before["eval_loss"]
    assert after["eval_accuracy"] == 1.0
    wanted = {"accuracy", "precision", "recall", "f1", "roc_auc", "f1_negative", "f1_positive"}
    assert {f"eval_{name}" for name in wanted} <= set(after)


def test_label_smoothing_reaches_the_loss(prepare, tiny_distilbert_dir, cls_csv, tmp_path):
    made = prepare(TASK, tiny_distilbert_dir, cls_csv)

    plain = made.trainer(tmp_path).evaluate()["eval_loss"]
    smooth = made.trainer(tmp_path, label_smoothing_factor=0.5).evaluate()["eval_loss"]

    assert not np.isclose(plain, smooth)


def test_model_limit_is_named(prepare, tiny_distilbert_dir, cls_csv):
    with pytest.raises(ConfigError) as caught:
        prepare(TASK, tiny_distilbert_dir, cls_csv, max_length=65)

    assert str(caught.value) == (
        "Examples would be too long in data.max_length: got 65 tokens, expected at most 64, the "
        "positions of this DistilBertForSequenceClassification. Set data.max_length=64."
    )


def message(prepare, model, path, **data):
    with pytest.raises(DataError) as caught:
        prepare(TASK, model, path, **data)
    return str(caught.value)


def test_label_unseen_in_training(prepare, tiny_distilbert_dir, jsonl):
    train = jsonl([{"text": "good", "label": "ab"[i % 2]} for i in range(4)], "train.jsonl")
    rows = [{"text": "bad", "label": label} for label in ("a", "c", "c", "A")]
    other = jsonl(rows, "other.jsonl")

    assert message(prepare, tiny_distilbert_dir, train, validation=other) == (
        f"Labels unseen in training in the validation examples of '{other}', column 'label': 'c' "
        "in examples 2, 3 (lines 2, 3); 'A' in example 4 (line 4). Labels of the training "
        "examples: a, b. Correct these examples, remove them, or add such examples to the "
        "training data."
    )


def test_class_name_without_training_rows_is_unseen_too(prepare, tiny_distilbert_dir, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c"])})
    for name, labels in (("train", [0, 1, 0, 1]), ("other", [2])):
        rows = [{"text": "good", "label": label} for label in labels]
        Dataset.from_list(rows, features=features).save_to_disk(tmp_path / name)

    said = message(
        prepare, tiny_distilbert_dir, str(tmp_path / "train"), validation=str(tmp_path / "other")
    )

    assert "column 'label': 'c' in example 1." in said


def test_missing_column(prepare, tiny_distilbert_dir, cls_csv):
    assert message(prepare, tiny_distilbert_dir, cls_csv, label="lable") == (
        f"Columns are missing in the training examples of '{cls_csv}': data.label: got 'lable', "
        "expected a column of the data. Did you mean 'label'? Columns of the data: text, label. "
        "Name them in the recipe, as in data.label=text."
    )


def test_missing_labels_and_texts(prepare, tiny_distilbert_dir, jsonl):
    rows = [{"text": "good", "label": "a"}, {"text": "bad", "label": None}] * 2
    path = jsonl(rows, "labels.jsonl")
    assert message(prepare, tiny_distilbert_dir, path, validation_fraction=0) == (
        f"Labels are missing in the training examples of '{path}', column 'label': examples 2, 4 "
        "(lines 2, 4) have none, expected one in each example. Label these examples or remove "
        "them."
    )
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(["x", " ", None, "y"])]
    path = jsonl(rows, "texts.jsonl")
    assert message(prepare, tiny_distilbert_dir, path, validation_fraction=0) == (
        f"Texts are missing in the training examples of '{path}': 'text' (data.text) is empty in "
        "examples 2, 3 (lines 2, 3); expected a text in each example. Repair or remove these "
        "examples, or name another column."
    )


def test_what_is_not_a_label(prepare, tiny_distilbert_dir, jsonl):
    path = jsonl([{"text": "good", "label": i / 2} for i in range(4)])
    kind = "single_label_classification"

    said = message(prepare, tiny_distilbert_dir, path, validation_fraction=0, problem_type=kind)

    assert said == (
        f"Not class labels in the training examples of '{path}', column 'label': got 0.0 "
        "in example 1 (line 1), expected text, integers or true/false. Set "
        "data.problem_type=regression if these are numbers to predict."
    )


def test_weights_of_classes_are_in_the_loss(prepare, tiny_distilbert_dir, cls_csv, tmp_path):
    weights = {"positive": 3}
    made = prepare(TASK, tiny_distilbert_dir, cls_csv, class_weights=weights)
    assert made.encoded.class_weights == (1.0, 3.0)

    trainer = made.trainer(tmp_path)

    assert trainer.step.loss.weights.tolist() == [1.0, 3.0]
    plain = prepare(TASK, tiny_distilbert_dir, cls_csv).trainer(tmp_path)
    batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
    parts = [trainer.step.evaluate(made.model, batch), plain.step.evaluate(made.model, batch)]
    assert parts[0].loss.item() == pytest.approx(parts[1].loss.item(), rel=1e-5)


def test_balanced_classes_count_what_an_epoch_draws(prepare, tiny_distilbert_dir, jsonl):
    rows = [{"text": "good", "label": "a"}] * 4, [{"text": "bad", "label": "b"}] * 4
    train = [{"path": jsonl(rows[0], "a.jsonl"), "weight": 3}, {"path": jsonl(rows[1], "b.jsonl")}]
    options = {"class_weights": "balanced", "validation_fraction": 0}
    made = prepare(TASK, tiny_distilbert_dir, train, **options)  # 12 of a, 4 of b
    assert made.encoded.class_weights == pytest.approx((2 / 3, 2))


def test_t5_classifies_at_the_end_token_so_texts_have_none(prepare, tiny_t5_dir, jsonl):
    texts = ["the film was good", "the cat </s> was bad", "the dog was bad </s>"]
    path = jsonl([{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)])

    said = message(prepare, tiny_t5_dir, path, validation_fraction=0)

    assert said == (
        f"Texts contain the token at which the base classifies in the training examples of "
        f"'{path}': got '</s>' in example 2 (line 2), expected it at the end alone. Remove it from "
        "these texts, or leave them out."
    )


def test_texts_that_are_numbers(prepare, tiny_distilbert_dir, jsonl):
    path = jsonl([{"text": i, "label": "ab"[i % 2]} for i in range(4)])

    said = message(prepare, tiny_distilbert_dir, path, validation_fraction=0)

    assert (
        "'text' (data.text) holds int in examples 1, 2, 3, 4 (lines 1, 2, 3, 4); expected" in said
    )


def test_one_label_only(prepare, tiny_distilbert_dir, jsonl):
    path = jsonl([{"text": "good", "label": "a"}] * 4)

    assert message(prepare, tiny_distilbert_dir, path) == (
        f"Nothing to classify in the training examples of '{path}', column 'label': got only "
        "the label 'a', expected at least 2. Name the right column in data.label."
    )
