"""Examples are tokenized by one process of a machine, and mapped by all."""

from pathlib import Path

import pytest
from datasets import Dataset

from lorakit.training import encode_once
from lorakit.training.tasks import Encoded


def encoded(validation=True):
    train = Dataset.from_list([{"input_ids": [1, 2]}, {"input_ids": [3]}])
    held_out = Dataset.from_list([{"input_ids": [4]}]) if validation else None
    return Encoded(train, held_out, ("a note",), {"max_length": 2})


@pytest.fixture
def several(monkeypatch, tmp_path):
    """The first of two processes on a machine; the folders that it makes."""
    monkeypatch.setattr(encode_once, "process_count", lambda: 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_single_process_writes_nothing(monkeypatch):
    monkeypatch.setattr(encode_once, "scratch_directory", lambda prefix: pytest.fail("written"))
    made = encoded()
    assert encode_once.encode_once_per_machine(lambda: made) is made


@pytest.mark.parametrize("validation", [True, False])
def test_processes_map_equal_examples_from_files_that_are_then_deleted(several, validation):
    made = encoded(validation)
    got = encode_once.encode_once_per_machine(lambda: made)
    assert got is not made
    assert got.train.to_list() == made.train.to_list()
    assert (got.validation and got.validation.to_list()) == (
        (validation and [{"input_ids": [4]}]) or None
    )
    assert (got.notes, got.settings) == (made.notes, made.settings)
    assert list(several.iterdir()) == []


def test_files_are_kept_for_processes_that_open_them_later(several):
    got = encode_once.encode_once_per_machine(encoded, keep_files=True)
    (folder,) = several.iterdir()
    assert Path(got.train.cache_files[0]["filename"]).is_relative_to(folder)


def test_other_processes_of_the_machine_do_not_encode(several, monkeypatch):
    (several / "first").mkdir()
    written = encode_once._write(encoded(), several / "first")
    monkeypatch.setattr(encode_once, "is_local_rank_zero", lambda: False)
    monkeypatch.setattr(encode_once, "broadcast_from_local_rank_zero", lambda value: written)
    got = encode_once.encode_once_per_machine(lambda: pytest.fail("encoded again"))
    assert got.train.to_list() == encoded().train.to_list()


def test_an_error_of_encoding_is_raised_and_leaves_no_files(several):
    with pytest.raises(ZeroDivisionError):
        encode_once.encode_once_per_machine(lambda: 1 / 0)
    assert list(several.iterdir()) == []
