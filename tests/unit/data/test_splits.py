import pytest
from datasets import Dataset, DatasetDict

from fixtures.data import LABELLED, split_error, write_examples
from lorakit.data import describe_examples, load_splits
from lorakit.errors import ConfigError, DataError
from lorakit.recipes.recipe import DataConfig


def test_validation_from_a_file_and_from_another_dataset(tmp_path):
    train = write_examples(tmp_path / "train.csv", LABELLED[:10])
    other = write_examples(tmp_path / "other.jsonl", LABELLED[10:])
    DatasetDict(only=Dataset.from_list(LABELLED[10:])).save_to_disk(tmp_path / "saved")

    from_file = load_splits(DataConfig(train=train, validation=other), 1)
    from_saved = load_splits(DataConfig(train=train, validation=str(tmp_path / "saved")), 1)

    assert from_file.validation.to_list() == LABELLED[10:]
    assert from_saved.validation.to_list() == LABELLED[10:]
    assert from_file.train.to_list() == LABELLED[:10]


def test_taken_validation_is_seeded_disjoint_and_says_so(tmp_path):
    data = DataConfig(train=write_examples(tmp_path / "rows.jsonl"), validation_fraction=0.2)

    once, again, other = (load_splits(data, seed, "label") for seed in (1, 1, 2))

    assert once.validation.to_list() == again.validation.to_list()
    assert once.validation.to_list() != other.validation.to_list()
    texts = [row["text"] for row in [*once.train, *once.validation]]
    assert sorted(texts) == sorted(row["text"] for row in LABELLED)
    assert once.notes == (
        "4 of 20 training examples were taken for validation (seed 1, stratified by 'label').",
    )


def test_rows_without_a_label_column_are_taken_at_random(tmp_path):
    rows = [{"text": str(i)} for i in range(10)]
    data = DataConfig(train=write_examples(tmp_path / "rows.jsonl", rows), validation_fraction=0.3)

    splits = load_splits(data, 0)

    assert len(splits.validation) == 3
    assert splits.notes == ("3 of 10 training examples were taken for validation (seed 0).",)


def test_row_limits_keep_a_random_choice_in_order(tmp_path):
    rows = [{"text": str(i), "label": str(i // 50)} for i in range(100)]  # sorted by label
    data = DataConfig(
        train=write_examples(tmp_path / "rows.jsonl", rows),
        validation_fraction=0.2,
        max_train_rows=10,
        max_validation_rows=5,
    )

    splits = load_splits(data, 42)

    numbers = [int(text) for text in splits.train["text"]]
    assert len(numbers) == 10 and numbers == sorted(numbers)
    assert set(splits.train["label"]) == {"0", "1"}
    assert len(splits.validation) == 5
    assert splits.notes[1:] == (
        "10 of 80 train examples were kept (data.max_train_rows).",
        "5 of 20 validation examples were kept (data.max_validation_rows).",
    )


def test_only_an_empty_cell_of_a_csv_file_is_missing(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nNA,None\nnull,a\n,a\n", encoding="utf-8")

    rows = load_splits(DataConfig(train=str(path), validation_fraction=0), 0).train.to_list()

    assert rows == [
        {"text": "NA", "label": "None"},
        {"text": "null", "label": "a"},
        {"text": None, "label": "a"},
    ]


def test_one_row_cannot_be_split(tmp_path):
    train = write_examples(tmp_path / "rows.csv", LABELLED[:1])

    assert split_error(DataError, train=train) == (
        f"No validation examples can be taken from '{train}' (data.train): got 1 example, expected "
        "at least 2. Add examples, name data.validation, or set data.validation_fraction=0."
    )


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c"], [["A"], ["B"]]])
def test_labels_of_one_example_each_cannot_be_split(tmp_path, labels):
    train = write_examples(
        tmp_path / "rows.jsonl", [{"text": "x", "label": label} for label in labels]
    )

    with pytest.raises(
        DataError, match=r"^No validation examples can be taken from .* each of the"
    ):
        load_splits(DataConfig(train=train), 42, "label")


def test_a_delimiter_is_for_csv_files(tmp_path):
    train = write_examples(tmp_path / "rows.jsonl")

    assert split_error(ConfigError, train=train, delimiter=";").startswith(
        f"Only csv files have a delimiter: got data.delimiter=';' for '{train}'"
    )


def test_errors_number_examples_as_the_file_does(tmp_path):
    rows = [{"text": str(i), "label": "ab"[i % 2]} for i in range(600)]
    data = DataConfig(train=write_examples(tmp_path / "rows.csv", rows), max_train_rows=50)

    splits = load_splits(data, 3, "label")

    for examples, _, place in splits.with_places(data):
        texts = examples["text"]
        for at in (0, 7, len(examples) - 1):
            number = int(texts[at])
            assert describe_examples([at], place) == f"example {number + 1} (line {number + 2})"
    few = splits.training_only([4, 9])
    assert describe_examples([1], few.train_place) == describe_examples([9], splits.train_place)


def test_splits_and_subsets_are_not_those_of_one_table(tmp_path):
    train = write_examples(tmp_path / "rows.jsonl")
    for given, key in (
        ({"train_split": "first"}, "data.train_split"),
        ({"validation": train, "validation_split": "test"}, "data.validation_split"),
        ({"train": ({"path": train, "split": "first"},)}, r"data.train[0].split"),
    ):
        message = split_error(DataError, **{"train": train, **given})
        assert message.startswith(f"No such split in {key}: got '"), message
        assert "is one table without splits" in message
    for given, key in (
        ({"subset": "mrpc", "validation": train}, "data.subset"),
        ({"train": ({"path": (train, train), "subset": "mrpc"},)}, "data.train[0].subset"),
    ):
        message = split_error(DataError, **{"train": train, **given})
        assert message.startswith(
            f"Only datasets of the hub have configurations: got {key}='mrpc' for '{train}'"
        )
