"""Data files below a folder, and receiving new ones."""

from types import SimpleNamespace

import pytest

from lorakit.errors import DataError, DiskError
from lorakit.runs import data_files
from lorakit.runs.data_files import find_data, receiving


def receive(root, name, content=b"text,label\n", size=None):
    with receiving(root, name, len(content) if size is None else size) as (path, file):
        file.write(content)
    return path


def test_data_is_found_and_files_of_models_and_runs_are_not(tmp_path):
    for name in (
        *("reviews.csv", "data/chat.jsonl", "notes.txt", ".secret.csv"),
        *("runs/a/recipe.yaml", "runs/a/environment.json", "runs/a/metrics.jsonl"),
        *("runs/a/analysis/layers.csv", "runs/a/analysis/more/layers.csv"),
        *("tuned/search.yaml", "tuned/trials/a/x.csv", "tuned/trials.csv", "tuned/ray/s/y.json"),
        *("base/config.json", "base/vocab.json", "saved/dataset_dict.json", "saved/x.json"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert {file.name for file in find_data(tmp_path)} == {
        "reviews.csv",
        "data/chat.jsonl",
        "saved",
    }


def test_a_file_appears_when_it_is_whole_and_keeps_its_name(tmp_path):
    path = receive(tmp_path, "C:\\Documents\\reviews.csv")
    assert path == tmp_path / "data" / "reviews.csv" and path.read_bytes() == b"text,label\n"
    assert receive(tmp_path, "reviews.csv").name == "reviews-2.csv"
    assert receive(tmp_path, "../../日本 <b>.csv").parent == tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.xlsx", "expected one of .csv, .tsv, .json, .jsonl, .parquet"),
        ("a.csv.zip", "Unpack the file first"),
        ("noending", "with the ending ''"),
        ("a\n.csv", "without control characters"),
        (".csv", "with the ending ''"),
        ("x" * 250 + ".csv", "at most 200 bytes"),
    ],
)
def test_names_that_cannot_be_data_are_refused_before_a_byte_is_written(tmp_path, name, words):
    with pytest.raises(DataError, match=words):
        receive(tmp_path, name)
    assert not (tmp_path / "data").exists()


def test_a_file_that_ends_early_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="got 3 bytes, expected 9"):
        receive(tmp_path, "a.csv", b"abc", size=9)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_file_larger_than_the_disk_is_refused_at_once(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=60_000_000, total=10**9)
    monkeypatch.setattr(data_files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskError, match=r"got a file of 20\.0 MB, .* has 60\.0 MB free"):
        receive(tmp_path, "a.csv", size=20_000_000)
    assert receive(tmp_path, "b.csv").exists()
