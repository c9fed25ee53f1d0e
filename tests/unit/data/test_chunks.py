"""Work on examples in chunks and in processes."""

import os
import signal

import numpy as np
import pytest
from datasets import Dataset

from lorakit.data import chunks
from lorakit.data.chunks import arrow_chunk, column_values, digest_of, is_large, over_chunks
from lorakit.data.progress import reporting_progress
from lorakit.data.reading.json_columns import columns_from_objects
from lorakit.errors import DataError


@pytest.fixture
def numbered(monkeypatch):
    """50 examples, which are large data for two processes."""
    monkeypatch.setattr(chunks, "_LARGE_EXAMPLES", 50)
    monkeypatch.setattr(chunks, "_CHUNK_EXAMPLES", 7)
    monkeypatch.setattr(chunks.os, "sched_getaffinity", lambda _: {0, 1})
    return Dataset.from_dict({"n": list(range(50)), "text": [f"word {n}" for n in range(50)]})


def test_chunks_have_the_examples_in_order_whatever_was_selected(numbered):
    order = np.random.default_rng(0).permutation(50)
    for examples in (numbered, numbered.select(order), numbered.select(range(10, 40))):
        made = list(over_chunks(examples, lambda batch, numbers: (batch, numbers), "Trying"))

        assert [n for batch, _ in made for n in batch["n"]] == examples["n"][:]
        assert [number for _, numbers in made for number in numbers] == list(range(len(examples)))
        assert column_values(examples, "text") == examples["text"][:]
    assert not len(arrow_chunk(numbered.select([3]), range(0)))


def test_values_are_decoded_as_a_dataset_decodes_them():
    talk = [{"role": "user", "content": None}, {"role": "tool", "content": {"a": 0.3}}]
    read = columns_from_objects([(1, {"talk": talk}), (2, {"talk": talk[:1]})], "here", None)

    assert column_values(read.dataset, "talk") == [talk, talk[:1]]
    assert column_values(read.dataset.select([1, 0]), "talk") == [talk[:1], talk]
    assert digest_of(read.dataset) != digest_of(read.dataset.select([1, 0]))


def test_large_data_is_worked_through_in_other_processes_with_its_progress(numbered):
    seen = []
    with reporting_progress(seen.append):
        workers = set(over_chunks(numbered, lambda batch, numbers: os.getpid(), "Trying"))
        small = set(over_chunks(numbered.select(range(9)), lambda *_: os.getpid(), "Trying"))

    assert os.getpid() not in workers and small == {os.getpid()}
    assert [one.done for one in seen] == [0, 7, 14, 21, 28, 35, 42, 49, 50]
    assert {(one.what, one.total, one.unit) for one in seen} == {("Trying", 50, "examples")}


def test_an_error_of_a_process_is_raised_here(numbered):
    def refuse(batch, numbers):
        if 20 in numbers:
            raise DataError("Example 21 is wrong.")

    with pytest.raises(DataError, match="Example 21 is wrong"):
        list(over_chunks(numbered, refuse, "Trying"))


def test_a_process_that_is_killed_is_an_error(numbered):
    def die(batch, numbers):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=r"^Trying failed: got a process that was killed"):
        list(over_chunks(numbered, die, "Trying"))


def test_one_processor_does_all_itself(numbered, monkeypatch):
    monkeypatch.setattr(chunks.os, "sched_getaffinity", lambda _: {0})
    seen = []
    with reporting_progress(seen.append):
        assert set(over_chunks(numbered, lambda *_: os.getpid(), "Trying")) == {os.getpid()}
    assert (seen[0].done, seen[-1].done) == (0, 50)


def test_long_examples_are_large_and_in_smaller_chunks(monkeypatch):
    examples = Dataset.from_dict({"text": ["x" * 1000] * 30})
    assert not is_large(examples)
    monkeypatch.setattr(chunks, "_LARGE_BYTES", 20_000)
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 5_000)

    assert is_large(examples)
    sizes = list(over_chunks(examples, lambda batch, numbers: len(numbers), "Trying"))
    assert sum(sizes) == 30 and max(sizes) <= 5


def test_digests_tell_content_types_and_rules_apart(numbered):
    digest = digest_of(numbered, "rules")
    copy = Dataset.from_dict(numbered.to_dict())
    longer = Dataset.from_dict({"n": list(range(-5, 50)), "text": [""] * 5 + copy["text"][:]})

    assert digest_of(copy, "rules") == digest
    assert digest_of(longer.select(range(5, 55)), "rules") == digest
    others = [
        digest_of(numbered, "other rules"),
        digest_of(numbered.select(range(49)), "rules"),
        digest_of(numbered.select([1, 0, *range(2, 50)]), "rules"),
        digest_of(numbered.rename_column("n", "m"), "rules"),
    ]
    assert len({digest, *others}) == 5
