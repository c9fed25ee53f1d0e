"""Files, saved datasets and hub datasets: how they are found, read and refused."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

import lorakit.data.reading.sources as sources_module
from fixtures.data import LABELLED, split_error, write_examples
from lorakit.data import load_splits
from lorakit.errors import DataError, LorakitError, MissingFileError
from lorakit.recipes.recipe import DataConfig


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending):
    train = write_examples(tmp_path / f"rows.{ending}")

    splits = load_splits(DataConfig(train=train, validation_fraction=0), 42)

    assert splits.train.to_list() == LABELLED
    assert splits.validation is None
    assert splits.notes == ()


def test_saved_dataset_and_saved_splits(tmp_path):
    Dataset.from_list(LABELLED).save_to_disk(tmp_path / "table")
    DatasetDict(
        train=Dataset.from_list(LABELLED[:12]),
        validation=Dataset.from_list(LABELLED[12:16]),
        held=Dataset.from_list(LABELLED[16:]),
    ).save_to_disk(tmp_path / "splits")

    table = load_splits(DataConfig(train=str(tmp_path / "table"), validation_fraction=0), 1)
    splits = load_splits(DataConfig(train=str(tmp_path / "splits")), 1)
    named = load_splits(
        DataConfig(train=str(tmp_path / "splits"), train_split="held", validation_split="train"), 1
    )

    assert table.train.to_list() == LABELLED
    assert splits.train.to_list() == LABELLED[:12]
    assert splits.validation.to_list() == LABELLED[12:16]
    assert named.train.to_list() == LABELLED[16:]
    assert named.validation.to_list() == LABELLED[:12]


def test_hub_dataset_is_loaded_by_its_name_and_subset(monkeypatch):
    asked = []

    def load_dataset(name, subset):
        asked.append((name, subset))
        return DatasetDict(
            train=Dataset.from_list(LABELLED), validation=Dataset.from_list(LABELLED[:3])
        )

    monkeypatch.setattr(sources_module, "load_dataset", load_dataset)

    splits = load_splits(DataConfig(train="glue", subset="mrpc"), 0)

    assert asked == [("glue", "mrpc")]
    assert len(splits.validation) == 3


def test_missing_file_names_its_neighbours(tmp_path):
    write_examples(tmp_path / "reviews.csv")

    assert split_error(MissingFileError, train=str(tmp_path / "review.csv")) == (
        f"No data in data.train: got '{tmp_path}/review.csv', expected a file or folder that "
        f"exists. Near it in '{tmp_path}': reviews.csv. Check the path; it is relative to the "
        "current directory."
    )
    train = str(tmp_path / "reviews.csv")
    assert split_error(MissingFileError, train=train, validation="./nowhere/x.csv") == (
        "No data in data.validation: got 'nowhere/x.csv', but there is no folder 'nowhere'. "
        "Check the path; it is relative to the current directory."
    )


def test_unknown_ending(tmp_path):
    path = tmp_path / "rows.xlsx"
    path.write_text("x", encoding="utf-8")

    assert split_error(DataError, train=str(path)) == (
        f"Could not read data.train: got '{path}' with the ending '.xlsx', expected one of .csv, "
        ".tsv, .json, .jsonl, .parquet. Convert the file, or rename it to what it holds."
    )


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", ""), ("b.csv", "text,label\n"), ("c.jsonl", "")]
)
def test_empty_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")

    assert split_error(DataError, train=str(path)) == (
        f"No examples in '{path}' (data.train): got 0, expected at least 1. Check that the right "
        "file is named."
    )


def test_empty_saved_dataset(tmp_path):
    Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "empty")

    assert split_error(DataError, train=str(tmp_path / "empty")).startswith("No examples in ")


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

    message = split_error(DataError, train=str(path))

    assert message.startswith(f"Could not read data.train: got '{path}', ")
    assert reason in message


def test_folder_that_is_no_saved_dataset(tmp_path):
    write_examples(tmp_path / "rows.csv")

    assert split_error(DataError, train=str(tmp_path)) == (
        f"Could not read data.train: got the folder '{tmp_path}', expected one written by "
        "Dataset.save_to_disk, or a file. Files in it that can be read: rows.csv. Name one file in "
        "data.train."
    )


def test_damaged_saved_dataset(tmp_path):
    Dataset.from_list(LABELLED).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"broken")

    message = split_error(DataError, train=str(tmp_path / "saved"))

    assert message.startswith(
        f"Could not read data.train: got '{tmp_path}/saved', which is damaged"
    )


def test_unknown_split_names_those_there(tmp_path):
    DatasetDict(train=Dataset.from_list(LABELLED)).save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")

    assert split_error(DataError, train=saved, train_split="trian") == (
        f"No such split in data.train_split: got 'trian', expected one of '{saved}': train. Did "
        "you mean 'train'? Set data.train_split to one of them."
    )
    train = write_examples(tmp_path / "rows.csv")
    assert split_error(DataError, train=train, validation_split="validation") == (
        "No such split in data.validation_split: got 'validation', but "
        f"'{train}' is one table without splits. Name the validation file in data.validation, or "
        "leave data.validation_split out and examples are taken by data.validation_fraction."
    )


def test_unreachable_hub_says_what_was_tried_and_that_a_path_works():
    assert split_error(MissingFileError, train="rotten_tomatoes") == (
        "Could not load data.train: got 'rotten_tomatoes', which is not a file or folder, and "
        "asking the Hugging Face hub for a dataset of that name failed (Couldn't reach "
        "'rotten_tomatoes' on the Hub (OfflineModeIsEnabled)). Check the name and the network, or "
        "name a local csv, json, jsonl or parquet file or a saved dataset."
    )


def test_unknown_subset_of_a_hub_dataset(monkeypatch):
    def load_dataset(name, subset):
        raise ValueError("BuilderConfig 'mprc' not found. Available: ['mrpc', 'cola']")

    monkeypatch.setattr(sources_module, "load_dataset", load_dataset)

    assert split_error(DataError, train="glue", subset="mprc") == (
        "Could not load 'glue' (data.subset 'mprc') in data.train from the Hugging Face hub: "
        "BuilderConfig 'mprc' not found. Available: ['mrpc', 'cola']. Set data.subset to one of "
        "its configurations."
    )


def test_a_replaced_file_is_read_again_though_its_date_is_kept(tmp_path):
    path = Path(write_examples(tmp_path / "rows.parquet"))
    times = path.stat()
    first = load_splits(DataConfig(train=str(path), validation_fraction=0), 0).train["text"][:]
    write_examples(path, [{**row, "text": row["text"].upper()} for row in LABELLED])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    again = load_splits(DataConfig(train=str(path), validation_fraction=0), 0).train["text"][:]

    assert again == [text.upper() for text in first]


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

    assert "expected one of .csv, .tsv, .json, .jsonl, .parquet." in split_error(
        DataError, train=str(path)
    )
