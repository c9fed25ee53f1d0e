"""Whether a resumed run says that its examples are others than at its beginning."""

import json

import pyarrow as pa
import pytest
from datasets import Dataset

from lorakit.data.stream import EncodedStream, ExampleStream
from lorakit.errors import CheckpointError
from lorakit.recipes.data_section import DataConfig
from lorakit.training.example_digests import (
    KEY,
    LABELS_KEY,
    dataset_digest,
    example_digests,
    note_changed_examples,
    require_same_labels,
)
from lorakit.training.tasks import Encoded

ROWS = {"input_ids": [[1, 2], [3], []], "labels": [0, 1, 2]}


def digest(rows, **options):
    return example_digests(Encoded(Dataset.from_dict(rows, **options), None))["training"]


def test_how_the_examples_are_held_does_not_count():
    one = digest(ROWS)
    table = pa.table(
        {
            "labels": pa.array([0, 1, 2], pa.int32()),
            "input_ids": pa.array(ROWS["input_ids"], pa.large_list(pa.int64())),
        }
    )
    parts = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert example_digests(Encoded(Dataset(parts), None))["training"] == one
    longer = Dataset.from_dict({k: [v[0], *v] for k, v in ROWS.items()})
    assert example_digests(Encoded(longer.select([1, 2, 3]), None))["training"] == one


@pytest.mark.parametrize(
    "rows",
    [
        {"input_ids": [[1, 2], [3], []], "labels": [0, 1, 1]},
        {"input_ids": [[1], [2, 3], []], "labels": [0, 1, 2]},
        {"input_ids": [[1, 2], [3]], "labels": [0, 1]},
        {"input_ids": [[3], [1, 2], []], "labels": [1, 0, 2]},
        {"labels": [[1, 2], [3], []], "input_ids": [0, 1, 2]},
    ],
)
def test_every_other_content_or_order_is_another(rows):
    assert digest(rows) != digest(ROWS)


def test_what_has_changed_is_said(tmp_path):
    file = tmp_path / "environment.json"
    now = {"training": "a", "validation": None}
    file.write_text(json.dumps({KEY: now}))
    assert note_changed_examples(file, now) is None
    said = note_changed_examples(file, {"training": "b", "validation": "c"})
    assert said is not None
    assert said.startswith("The training and validation examples have changed since the run")
    for text in ("", "{}", "[]", "null", '{"examples": 3}', '{"examples": {}}'):
        file.write_text(text)
        assert note_changed_examples(file, {"training": "b", "validation": None}) is None


def test_streamed_files_that_have_changed_are_said(tmp_path):
    path, file = tmp_path / "texts.jsonl", tmp_path / "environment.json"
    path.write_text('{"text": "a"}\n' * 9)
    given = DataConfig(train=str(path), streaming=True)
    stream = EncodedStream(ExampleStream.of(given, seed=0), lambda part, place: [])

    def now():
        return example_digests(Encoded(Dataset.from_dict(ROWS), None, stream=stream))

    file.write_text(json.dumps({KEY: now()}))
    assert note_changed_examples(file, now()) is None
    with path.open("a") as texts:
        texts.write('{"text": "b"}\n')
    said = note_changed_examples(file, now())
    assert said is not None and said.startswith("The streamed files have another size or time")
    file.write_text(json.dumps({KEY: {**now(), "training": "a"}}))
    said = note_changed_examples(file, now())
    assert said is not None and said.startswith("The training examples have changed")
    file.write_text(json.dumps({KEY: digests_of_an_earlier_version(now())}))
    assert note_changed_examples(file, now()) is None


def digests_of_an_earlier_version(now):
    return {name: digest for name, digest in now.items() if name in ("training", "validation")}


def test_other_examples_have_another_digest():
    one = Dataset.from_dict({"input_ids": [[1, 2], [3]], "parts": [[1, 1], [1, 0]]})
    assert dataset_digest(one) == dataset_digest(Dataset.from_list([*one]))
    assert dataset_digest(one) != dataset_digest(one.select([1, 0]))


def test_labels_of_another_order_are_refused(tmp_path):
    file = tmp_path / "environment.json"
    require_same_labels(file, ["good", "bad"])
    for before in ("{}", '{"labels": null}'):
        file.write_text(before)
        require_same_labels(file, ["good", "bad"])
    file.write_text(json.dumps({LABELS_KEY: ["bad", "good"]}))
    require_same_labels(file, ("bad", "good"))
    with pytest.raises(CheckpointError, match="got 'good' as label 0, expected 'bad'"):
        require_same_labels(file, ["good", "bad"])
    with pytest.raises(CheckpointError, match="got 'so so' as label 2, expected None"):
        require_same_labels(file, ["bad", "good", "so so"])
