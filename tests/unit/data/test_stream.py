"""Streams of training examples."""

import csv
import json
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from lorakit.data import load_splits, stream
from lorakit.data.stream import EncodedStream, ExampleStream
from lorakit.errors import DataError, MissingFileError
from lorakit.recipes.data_section import DataConfig


@pytest.fixture
def write(tmp_path):
    def make(name, numbers, column="text"):
        path = tmp_path / name
        if name.endswith(".parquet"):
            parquet.write_table(pa.table({column: [f"t{n}" for n in numbers]}), path)
            return str(path)
        with path.open("w", newline="") as file:
            if name.endswith(".csv"):
                csv.writer(file).writerows([[column], *([f"t{n}"] for n in numbers)])
            else:
                file.writelines(json.dumps({column: f"t{n}"}) + "\n" for n in numbers)
        return str(path)

    return make


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(stream, "_PART_EXAMPLES", 7)


def _stream(train, **keys):
    return ExampleStream.of(DataConfig(train=train, streaming=True, **keys), seed=0)


def _encoded(stream, encode=None):
    def as_numbers(part, place):
        return [{"n": int(text[1:])} for text in part["text"]]

    return EncodedStream(stream, encode or as_numbers)


def _numbers(stream, count):
    return [example["n"] for example in islice(_encoded(stream), count)]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_every_pass_has_each_example_once_in_an_order_of_its_seed(write, ending):
    path = write(f"some{ending}", range(40))
    seen = _numbers(_stream(path, shuffle_buffer=10), 80)
    first, second = seen[:40], seen[40:]

    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second and list(range(40)) not in (first, second)
    assert seen == _numbers(_stream(path, shuffle_buffer=10), 80)
    assert seen != _numbers(ExampleStream.of(DataConfig(train=path, shuffle_buffer=10), 1), 80)
    assert all(number <= at + 10 for at, number in enumerate(first))  # it is not read before


def test_nothing_is_read_before_it_is_needed(write):
    path = write("some.jsonl", range(40))
    with open(path, "a") as file:
        file.write("not JSON\n")
    read = []
    encoded = _encoded(
        _stream(path, shuffle_buffer=5),
        lambda part, place: read.append(place.lines) or [{"n": 0}] * len(part),
    )

    list(islice(iter(encoded), 10))
    assert [len(lines) for lines in read] == [7, 7, 7] and read[2][0] == 15
    with pytest.raises(DataError, match="not JSON at line 41"):
        list(islice(iter(encoded), 40))


def test_examples_at_the_beginning_are_set_aside(write):
    files = [write("a.jsonl", range(10)), write("b.csv", range(10, 30))]
    pattern = files[0].replace("a.jsonl", "[ab].*")
    one = _stream(pattern, shuffle_buffer=1).setting_aside(12)

    assert [text[1:] for text in one.set_aside().dataset["text"]] == [str(n) for n in range(12)]
    assert _numbers(one, 18) == list(range(12, 30))
    sample = one.sample(3)
    assert sample.dataset["text"][:] == ["t12", "t13", "t14"]
    assert sample.lines.tolist() == [4, 5, 6]
    with pytest.raises(DataError, match="all set aside for validation"):
        _stream(files[0]).setting_aside(10).sample(3)


def test_sources_are_drawn_by_their_weights(write):
    sources = [
        {"path": write("a.jsonl", range(20))},
        {"path": write("b.csv", range(100, 120), "review"), "columns": {"text": "review"}},
    ]
    sources[1]["weight"] = 3.0
    drawn = _numbers(_stream(sources, shuffle_buffer=4), 400)

    assert 250 < sum(number >= 100 for number in drawn) < 350
    assert set(drawn) == {*range(20), *range(100, 120)}
    held_out = _stream(sources).setting_aside(5).set_aside()
    assert held_out.dataset["text"][:] == ["t0", "t1", "t2", "t100", "t101", "t102"]


def test_places_name_file_and_line(write):
    write("a.jsonl", range(10))
    path = write("b.jsonl", range(10))
    pattern = path.replace("b.jsonl", "*.jsonl")
    places = []
    encoded = _encoded(
        _stream(pattern, shuffle_buffer=1),
        lambda part, place: places.append(place) or [{"n": 0}] * len(part),
    )
    list(islice(iter(encoded), 18))

    assert str(places[-1]) == f"the training examples of '{path}'"
    assert (places[-1].numbers[0], places[-1].lines[0]) == (7, 8)


def test_what_cannot_be_streamed_is_an_error(write, tmp_path):
    document = tmp_path / "some.json"
    document.write_text(json.dumps([{"text": "a"}, {"text": "b"}]))
    with pytest.raises(DataError, match="one JSON document, expected one object per line"):
        _numbers(_stream(str(document)), 1)
    with pytest.raises(MissingFileError, match="Only files can be streamed: got 'owner/name'"):
        _stream("owner/name")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    whole = tmp_path / "whole.jsonl"
    whole.write_text('{"text": "t1"}\n')
    with pytest.raises(DataError, match=r"No examples in '.*empty.jsonl'"):
        _stream(str(tmp_path / "*.jsonl"))
    empty.write_text('{"text": "t0"}\n')
    stream = _stream(str(tmp_path / "*.jsonl"))
    assert sorted(_numbers(stream, 2)) == [0, 1]
    empty.write_text("")
    with pytest.raises(DataError, match=r"No examples in '.*empty.jsonl'"):
        _numbers(stream, 1)
    useless = _encoded(_stream(write("a.jsonl", range(3))), lambda part, place: [])
    with pytest.raises(DataError, match="no example with a token that counts in pass 1"):
        next(iter(useless))


def test_splits_have_a_sample_and_the_stream(write):
    path = write("some.csv", range(40))
    validation = write("other.csv", range(40, 50))
    keys = {"streaming": True, "max_validation_rows": 6, "shuffle_buffer": 9}
    made = load_splits(DataConfig(train=path, **keys), 0)
    given = load_splits(DataConfig(train=path, validation=validation, streaming=True), 0)
    none = load_splits(DataConfig(train=path, validation_fraction=0, streaming=True), 0)

    assert made.validation["text"][:] == [f"t{n}" for n in range(6)]
    assert made.train["text"][:] == [f"t{n}" for n in range(6, 40)]
    assert made.notes == (
        "The first 6 examples were taken for validation (data.max_validation_rows).",
        "Training examples are read when they are needed, in an order drawn from a buffer of 9 "
        "(data.streaming, data.shuffle_buffer).",
    )
    assert sorted(_numbers(made.stream, 34)) == list(range(6, 40))
    assert len(given.train) == 40 and given.validation["text"][0] == "t40"
    assert none.validation is None and len(none.train) == 40


def test_examples_that_are_left_out_are_counted(write):
    def encode(part, place):
        return [{"n": 0} for text in part["text"] if int(text[1:]) < 30]

    made = _encoded(_stream(write("some.jsonl", range(40)), shuffle_buffer=3), encode)
    assert len(list(islice(made, 20))) == 20 and made.left_out_note() is None
    list(islice(made, 30))
    assert made.left_out_note().startswith("10 of the 68 streamed examples")
