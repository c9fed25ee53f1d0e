import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

import lorakit.data.reading.sources as sources_module
from lorakit.data import describe_examples, load_splits, require_columns
from lorakit.errors import ConfigError, DataError, LorakitError, MissingFileError
from lorakit.recipes.recipe import DataConfig

ROWS = [{"text": f"row {i}", "label": ["a", "b"][i % 2]} for i in range(20)]


def write(path, rows=ROWS):
    if path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(str(path))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending):
    train = write(tmp_path / f"rows.{ending}")

    splits = load_splits(DataConfig(train=train, validation_fraction=0), 42)

    assert splits.train.to_list() == ROWS
    assert splits.validation is None
    assert splits.notes == ()


def test_saved_dataset_and_saved_splits(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "table")
    DatasetDict(
        train=Dataset.from_list(ROWS[:12]),
        validation=Dataset.from_list(ROWS[12:16]),
        held=Dataset.from_list(ROWS[16:]),
    ).save_to_disk(tmp_path / "splits")

    table = load_splits(DataConfig(train=str(tmp_path / "table"), validation_fraction=0), 1)
    splits = load_splits(DataConfig(train=str(tmp_path / "splits")), 1)
    named = load_splits(
        DataConfig(train=str(tmp_path / "splits"), train_split="held", validation_split="train"), 1
    )

    assert table.train.to_list() == ROWS
    assert splits.train.to_list() == ROWS[:12]
    assert splits.validation.to_list() == ROWS[12:16]
    assert named.train.to_list() == ROWS[16:]
    assert named.validation.to_list() == ROWS[:12]


def test_validation_from_a_file_and_from_another_dataset(tmp_path):
    train = write(tmp_path / "train.csv", ROWS[:10])
    other = write(tmp_path / "other.jsonl", ROWS[10:])
    DatasetDict(only=Dataset.from_list(ROWS[10:])).save_to_disk(tmp_path / "saved")

    from_file = load_splits(DataConfig(train=train, validation=other), 1)
    from_saved = load_splits(DataConfig(train=train, validation=str(tmp_path / "saved")), 1)

    assert from_file.validation.to_list() == ROWS[10:]
    assert from_saved.validation.to_list() == ROWS[10:]
    assert from_file.train.to_list() == ROWS[:10]


def test_taken_validation_is_seeded_disjoint_and_says_so(tmp_path):
    data = DataConfig(train=write(tmp_path / "rows.jsonl"), validation_fraction=0.2)

    once, again, other = (load_splits(data, seed, "label") for seed in (1, 1, 2))

    assert once.validation.to_list() == again.validation.to_list()
    assert once.validation.to_list() != other.validation.to_list()
    texts = [row["text"] for row in [*once.train, *once.validation]]
    assert sorted(texts) == sorted(row["text"] for row in ROWS)
    assert once.notes == (
        "4 of 20 training examples were taken for validation (seed 1, stratified by 'label').",
    )


def test_taken_validation_has_each_label_in_its_share_and_leaves_rare_ones_to_training(tmp_path):
    rows = [{"text": str(i), "label": "many"} for i in range(60)]
    rows += [{"text": str(i), "label": "some"} for i in range(20)]
    rows += [{"text": "x", "label": "once"}]
    data = DataConfig(train=write(tmp_path / "rows.jsonl", rows), validation_fraction=0.25)

    splits = load_splits(data, 3, "label")

    assert Counter(splits.validation["label"]) == {"many": 15, "some": 5}
    assert "once" in splits.train["label"]


def test_rows_without_a_label_column_are_taken_at_random(tmp_path):
    rows = [{"text": str(i)} for i in range(10)]
    data = DataConfig(train=write(tmp_path / "rows.jsonl", rows), validation_fraction=0.3)

    splits = load_splits(data, 0)

    assert len(splits.validation) == 3
    assert splits.notes == ("3 of 10 training examples were taken for validation (seed 0).",)


def test_row_limits_keep_a_random_choice_in_order(tmp_path):
    rows = [{"text": str(i), "label": str(i // 50)} for i in range(100)]  # sorted by label
    data = DataConfig(
        train=write(tmp_path / "rows.jsonl", rows),
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


def test_hub_dataset_is_loaded_by_its_name_and_subset(monkeypatch):
    asked = []

    def load_dataset(name, subset):
        asked.append((name, subset))
        return DatasetDict(train=Dataset.from_list(ROWS), validation=Dataset.from_list(ROWS[:3]))

    monkeypatch.setattr(sources_module, "load_dataset", load_dataset)

    splits = load_splits(DataConfig(train="glue", subset="mrpc"), 0)

    assert asked == [("glue", "mrpc")]
    assert len(splits.validation) == 3


def error_of(kind, **data):
    with pytest.raises(kind) as caught:
        load_splits(DataConfig(**data), 42)
    return str(caught.value)


def test_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path / "reviews.csv")

    assert error_of(MissingFileError, train=str(tmp_path / "review.csv")) == (
        f"No data in data.train: got '{tmp_path}/review.csv', expected a file or folder that "
        f"exists. Near it in '{tmp_path}': reviews.csv. Check the path; it is relative to the "
        "current directory."
    )
    train = str(tmp_path / "reviews.csv")
    assert error_of(MissingFileError, train=train, validation="./nowhere/x.csv") == (
        "No data in data.validation: got 'nowhere/x.csv', but there is no folder 'nowhere'. "
        "Check the path; it is relative to the current directory."
    )


def test_unknown_ending(tmp_path):
    path = tmp_path / "rows.xlsx"
    path.write_text("x", encoding="utf-8")

    assert error_of(DataError, train=str(path)) == (
        f"Could not read data.train: got '{path}' with the ending '.xlsx', expected one of .csv, "
        ".tsv, .json, .jsonl, .parquet. Convert the file, or rename it to what it holds."
    )


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", ""), ("b.csv", "text,label\n"), ("c.jsonl", "")]
)
def test_empty_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")

    assert error_of(DataError, train=str(path)) == (
        f"No examples in '{path}' (data.train): got 0, expected at least 1. Check that the right "
        "file is named."
    )


def test_empty_saved_dataset(tmp_path):
    Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "empty")

    assert error_of(DataError, train=str(tmp_path / "empty")).startswith("No examples in ")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.jsonl",
            '{"a": 1}\n{oops\n',
            "is not JSON at line 2, column 2 (expecting property name",
        ),
        ("b.csv", "a,b\n1,2\n1,2,3,4\n", "whose line 3 has 4 cells, expected 2 as the header has."),
        ("c.parquet", "hello", "is damaged or not what its ending says (Could not open Parquet"),
    ],
)
def test_damaged_file(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")

    message = error_of(DataError, train=str(path))

    assert message.startswith(f"Could not read data.train: got '{path}', ")
    assert reason in message


def test_folder_that_is_no_saved_dataset(tmp_path):
    write(tmp_path / "rows.csv")

    assert error_of(DataError, train=str(tmp_path)) == (
        f"Could not read data.train: got the folder '{tmp_path}', expected one written by "
        "Dataset.save_to_disk, or a file. Files in it that can be read: rows.csv. Name one file in "
        "data.train."
    )


def test_damaged_saved_dataset(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"broken")

    message = error_of(DataError, train=str(tmp_path / "saved"))

    assert message.startswith(
        f"Could not read data.train: got '{tmp_path}/saved', which is damaged"
    )


def test_unknown_split_names_those_there(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")

    assert error_of(DataError, train=saved, train_split="trian") == (
        f"No such split in data.train_split: got 'trian', expected one of '{saved}': train. Did "
        "you mean 'train'? Set data.train_split to one of them."
    )
    train = write(tmp_path / "rows.csv")
    assert error_of(DataError, train=train, validation_split="validation") == (
        "No such split in data.validation_split: got 'validation', but "
        f"'{train}' is one table without splits. Name the validation file in data.validation, or "
        "leave data.validation_split out and examples are taken by data.validation_fraction."
    )


def test_unreachable_hub_says_what_was_tried_and_that_a_path_works():
    assert error_of(MissingFileError, train="rotten_tomatoes") == (
        "Could not load data.train: got 'rotten_tomatoes', which is not a file or folder, and "
        "asking the Hugging Face hub for a dataset of that name failed (Couldn't reach "
        "'rotten_tomatoes' on the Hub (OfflineModeIsEnabled)). Check the name and the network, or "
        "name a local csv, json, jsonl or parquet file or a saved dataset."
    )


def test_unknown_subset_of_a_hub_dataset(monkeypatch):
    def load_dataset(name, subset):
        raise ValueError("BuilderConfig 'mprc' not found. Available: ['mrpc', 'cola']")

    monkeypatch.setattr(sources_module, "load_dataset", load_dataset)

    assert error_of(DataError, train="glue", subset="mprc") == (
        "Could not load 'glue' (data.subset 'mprc') in data.train from the Hugging Face hub: "
        "BuilderConfig 'mprc' not found. Available: ['mrpc', 'cola']. Set data.subset to one of "
        "its configurations."
    )


def test_one_row_cannot_be_split(tmp_path):
    train = write(tmp_path / "rows.csv", ROWS[:1])

    assert error_of(DataError, train=train) == (
        f"No validation examples can be taken from '{train}' (data.train): got 1 example, expected "
        "at least 2. Add examples, name data.validation, or set data.validation_fraction=0."
    )


def test_missing_columns_are_all_named_with_those_there():
    rows = Dataset.from_list([{"txet": "a", "score": 1}])

    with pytest.raises(DataError) as caught:
        require_columns(rows, {"data.text": "text", "data.label": "label"}, "the rows of 'x.csv'")

    assert str(caught.value) == (
        "Columns are missing in the rows of 'x.csv': data.text: got 'text', expected a column of "
        "the data. Did you mean 'txet'? data.label: got 'label', expected a column of the data. "
        "Columns of the data: txet, score. Name them in the recipe, as in data.text=txet."
    )


def test_class_label_column_is_split_by_label(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = [{"text": str(i), "label": int(i < 10)} for i in range(40)]
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")

    splits = load_splits(
        DataConfig(train=str(tmp_path / "saved"), validation_fraction=0.2), 0, "label"
    )

    assert Counter(splits.validation["label"]) == {0: 6, 1: 2}


def test_errors_number_examples_as_the_file_does(tmp_path):
    rows = [{"text": str(i), "label": "ab"[i % 2]} for i in range(600)]
    data = DataConfig(train=write(tmp_path / "rows.csv", rows), max_train_rows=50)

    splits = load_splits(data, 3, "label")

    for examples, _, place in splits.with_places(data):
        texts = examples["text"]
        for at in (0, 7, len(examples) - 1):
            number = int(texts[at])
            assert describe_examples([at], place) == f"example {number + 1} (line {number + 2})"
    few = splits.training_only([4, 9])
    assert describe_examples([1], few.train_place) == describe_examples([9], splits.train_place)


def test_only_the_labels_of_the_task_are_looked_at(tmp_path):
    data = DataConfig(train=write(tmp_path / "rows.jsonl"), validation_fraction=0.2)

    splits = load_splits(data, 1)

    assert splits.notes == ("4 of 20 training examples were taken for validation (seed 1).",)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_no_label_and_no_tag_is_lost_to_validation(tmp_path, seed, fraction):
    rows = [{"tags": ["O", "AB"[i % 2]], "label": "xy"[i % 2]} for i in range(20)]
    rows += [{"tags": ["O", "R"], "label": "r"}, {"tags": ["R", "S"], "label": "s"}]
    data = DataConfig(train=write(tmp_path / "rows.jsonl", rows), validation_fraction=fraction)

    for column in ("tags", "label"):
        splits = load_splits(data, seed, column)
        kept = {str(t) for tags in splits.train[column] for t in tags}
        assert {str(t) for tags in splits.validation[column] for t in tags} <= kept
        assert len(splits.train) + len(splits.validation) == len(rows)


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c"], [["A"], ["B"]]])
def test_labels_of_one_example_each_cannot_be_split(tmp_path, labels):
    train = write(tmp_path / "rows.jsonl", [{"text": "x", "label": label} for label in labels])

    with pytest.raises(
        DataError, match=r"^No validation examples can be taken from .* each of the"
    ):
        load_splits(DataConfig(train=train), 42, "label")


@pytest.mark.parametrize("most", [4, 5, 20, 199])
def test_a_limit_keeps_an_example_of_every_label(tmp_path, most):
    rows = [{"text": str(i), "label": "rare" if i in (3, 77) else "abc"[i % 3]} for i in range(200)]
    data = DataConfig(
        train=write(tmp_path / "rows.jsonl", rows), validation_fraction=0, max_train_rows=most
    )

    for seed in range(5):
        kept = load_splits(data, seed, "label").train
        assert set(kept["label"]) == {"a", "b", "c", "rare"}
        assert len(kept) == most == len(set(kept["text"]))


def test_splitting_takes_linear_time(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"t{i},l{i // 2}\n" for i in range(20_000)))

    splits = load_splits(DataConfig(train=str(path), validation_fraction=0.5), 0, "label")

    assert len(splits.validation) == 10_000
    assert len(set(splits.train["label"])) == 10_000


def test_validation_examples_that_are_trained_on_are_reported(tmp_path):
    train = write(tmp_path / "a.csv", ROWS)
    copied = write(tmp_path / "b.jsonl", ROWS)
    some = write(tmp_path / "c.jsonl", [*ROWS[:3], {"text": "new", "label": "a"}])
    other = write(tmp_path / "d.jsonl", [{"text": "new", "label": "a"}])

    def notes(validation):
        return load_splits(DataConfig(train=train, validation=validation), 0).notes

    both = "All 20 validation examples are also training examples, so the metrics say little "
    assert notes(train) == notes(copied) == (both + "about new ones.",)
    assert notes(some)[0].startswith("3 of 4 validation examples are also training examples")
    assert notes(other) == ()


def test_a_replaced_file_is_read_again_though_its_date_is_kept(tmp_path):
    path = Path(write(tmp_path / "rows.parquet"))
    times = path.stat()
    first = load_splits(DataConfig(train=str(path), validation_fraction=0), 0).train["text"][:]
    write(path, [{**row, "text": row["text"].upper()} for row in ROWS])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    again = load_splits(DataConfig(train=str(path), validation_fraction=0), 0).train["text"][:]

    assert again == [text.upper() for text in first]


def test_a_delimiter_is_for_csv_files(tmp_path):
    train = write(tmp_path / "rows.jsonl")

    assert error_of(ConfigError, train=train, delimiter=";").startswith(
        f"Only csv files have a delimiter: got data.delimiter=';' for '{train}'"
    )


@pytest.mark.parametrize("name", ["x" * 5000 + ".csv", "a\0b.csv"])
def test_paths_that_cannot_be(name):
    with pytest.raises(LorakitError) as caught:
        load_splits(DataConfig(train=name), 0)
    assert caught.value.exit_code == 2 and len(str(caught.value)) < 6000


def test_categories_of_a_parquet_file_are_their_texts(tmp_path):
    labels = pa.array(["01", "1", "01"]).dictionary_encode()
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": labels}), tmp_path / "rows.parquet")

    data = DataConfig(train=str(tmp_path / "rows.parquet"), validation_fraction=0)

    assert load_splits(data, 0).train["label"][:] == ["01", "1", "01"]


@pytest.mark.parametrize("ending", [".csv.gz", ".zip", ".xlsx"])
def test_packed_files_are_explained(tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    path.write_bytes(b"\x1f\x8b\x08")

    assert "expected one of .csv, .tsv, .json, .jsonl, .parquet." in error_of(
        DataError, train=str(path)
    )
