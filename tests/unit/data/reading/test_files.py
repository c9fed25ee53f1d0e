"""Read single files; large ones are kept as they were read."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from lorakit.data.progress import reporting_progress
from lorakit.data.reading import file_text, files
from lorakit.data.reading.files import read_file
from lorakit.data.table_cache import TableCache
from lorakit.errors import DataError

COUNT = 12_000
"""More examples than are read at once."""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for module in (files, file_text):
        monkeypatch.setattr(module, "LARGE_FILE_BYTES", 1000)
    return TableCache(tmp_path / "kept", 10**9)


def _write(folder, ending):
    path = folder / f"some{ending}"
    talk = [{"role": "user", "content": "hi"}]
    examples = [{"text": f"word {n}", "talk": [*talk, {"n": n}]} for n in range(COUNT)]
    examples[7000]["text"] = None
    examples[9000]["late"] = 0.5
    with path.open("w", newline="") as file:
        if ending == ".jsonl":
            file.writelines(f"{json.dumps(example)}\n" for example in examples)
        elif ending == ".csv":
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows([example["text"], f"label;{n}"] for n, example in enumerate(examples))
        else:
            texts = pa.array([example["text"] for example in examples])
            parquet.write_table(pa.table({"text": texts, "kind": texts.dictionary_encode()}), path)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_large_files_are_read_once_with_the_same_result(tmp_path, cache, monkeypatch, ending):
    path = _write(tmp_path, ending)
    plain = read_file(path, "data.train")
    first = read_file(path, "data.train", cache=cache)
    monkeypatch.setattr(files, "_parse", None)
    again = read_file(path, "data.train", cache=cache)

    for found in (first, again):
        assert found.dataset.features == plain.dataset.features
        assert found.dataset[6990:9010] == plain.dataset[6990:9010]
        assert len(found.dataset) == COUNT and found.notes == plain.notes
        assert (found.lines is None) == (plain.lines is None)
        assert plain.lines is None or found.lines.tolist() == plain.lines.tolist()


def test_what_other_code_has_kept_is_not_found(tmp_path, cache, monkeypatch):
    path = _write(tmp_path, ".csv")
    read_file(path, "data.train", cache=cache)
    monkeypatch.setattr(files, "preparing_code", lambda: "other code")
    read_file(path, "data.train", cache=cache)

    assert len(list(cache.directory.iterdir())) == 2


def test_a_file_that_was_replaced_is_read_again(tmp_path, cache):
    path = _write(tmp_path, ".csv")
    read_file(path, "data.train", cache=cache)
    path.write_bytes(path.read_bytes().replace(b"word 5\r", b"WORD 5\r").replace(b"word 5,", b"x,"))

    assert read_file(path, "data.train", cache=cache).dataset[5]["text"] == "x"
    assert read_file(path, "data.train", ",", cache).dataset[5]["text"] == "x"
    assert len(list(cache.directory.iterdir())) == 3  # the old content, the new, and the delimiter


def test_reading_reports_its_progress(tmp_path, cache):
    for ending, unit in ((".jsonl", "bytes"), (".parquet", "examples")):
        path, seen = _write(tmp_path, ending), []
        with reporting_progress(seen.append):
            read_file(path, "data.train", cache=cache)
        assert seen[-1].done == seen[-1].total > 0
        assert {(one.what, one.unit) for one in seen} == {(f"Reading {path.name}", unit)}


def test_a_damaged_large_file_is_an_error_and_not_kept(tmp_path, cache):
    path = _write(tmp_path, ".jsonl")
    with path.open("a") as file:
        file.write('{"text": \n')

    with pytest.raises(DataError, match=f"not JSON at line {COUNT + 1}"):
        read_file(path, "data.train", cache=cache)
    assert not cache.directory.exists()


def test_columns_of_a_parquet_file_have_one_name_each(tmp_path):
    path = tmp_path / "twice.parquet"
    parquet.write_table(pa.table([pa.array(["a"])] * 3, names=["text", "label", "text"]), path)
    with pytest.raises(DataError, match="which has several columns called 'text', expected each"):
        read_file(path, "data.train")
