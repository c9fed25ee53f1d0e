"""Predictions for a whole file."""

import copy
import csv
import errno
import json
import shutil
from dataclasses import replace

import pyarrow.parquet as parquet
import pytest

import lorakit
from lorakit.errors import ConfigError, DataError, DiskError
from lorakit.inference import PredictionSettings, classify, predict_file, tag
from lorakit.inference.file_predictions import adapter_identity
from lorakit.recipes.recipe import DataConfig

TEXTS = ["the film was great", "snow is white", "the dog was awful and bad " * 3, "great cat"]


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    rows = [{"id": f"00{n}", "text": text} for n, text in enumerate(TEXTS)]
    rows.insert(2, {"id": "x", "text": ""})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_keeps_its_columns_and_gets_new_ones(classifier, reviews, tmp_path):
    output = tmp_path / "out.csv"
    made = predict_file(classifier, reviews, output, PredictionSettings(probabilities=True))
    assert (made.rows, made.without_input, made.resumed) == (5, 1, 0)
    rows = read_csv(output)
    assert [row["id"] for row in rows] == ["000", "001", "x", "002", "003"]
    assert (rows[2]["prediction"], rows[2]["probability"]) == ("", "")
    expected = classify(classifier, TEXTS)
    for row, one in zip([rows[0], rows[1], rows[3], rows[4]], expected, strict=True):
        assert row["prediction"] == one.label
        assert float(row["probability"]) == pytest.approx(one.probability, rel=1e-4)
        for label, probability in one.probabilities.items():
            assert float(row[f"probability_{label}"]) == pytest.approx(probability, rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "reviews.csv"]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".tsv"])
def test_other_endings(classifier, reviews, tmp_path, ending):
    output = tmp_path / f"out{ending}"
    predict_file(classifier, reviews, output)
    if ending == ".jsonl":
        found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    elif ending == ".parquet":
        found = parquet.read_table(output).to_pylist()
    else:
        lines = [line.split("\t") for line in output.read_text(encoding="utf-8").splitlines()]
        found = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert [row["id"] for row in found] == ["000", "001", "x", "002", "003"]
    assert found[0]["prediction"] == classify(classifier, TEXTS[:1])[0].label
    assert not found[2]["prediction"]


def test_an_interrupted_call_goes_on_where_it_was(classifier, reviews, tmp_path, monkeypatch):
    settings = PredictionSettings(batch_rows=1)
    monkeypatch.setattr("lorakit.inference.file_predictions._BATCHES_AT_ONCE", {True: 2, False: 2})
    whole, output = tmp_path / "whole.csv", tmp_path / "out.csv"
    predict_file(classifier, reviews, whole, settings)

    def stop(done, _rows):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(classifier, reviews, output, settings, on_progress=stop)
    partial = tmp_path / ".out.csv.partial"
    assert not output.exists()
    with partial.open("a", encoding="utf-8") as file:
        file.write('["half of a write", 0.5]\n["cut off')
    (tmp_path / ".out.csv.0a1b2c3d").touch()  # a kill leaves it
    made = predict_file(classifier, reviews, output, settings)
    assert made.resumed == 2
    assert output.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.glob(".*")} == set()


@pytest.mark.parametrize("damaged", [0, 1, 3])
def test_a_damaged_row_and_what_follows_is_predicted_again(
    classifier, reviews, tmp_path, monkeypatch, damaged
):
    settings = PredictionSettings(batch_rows=1)
    monkeypatch.setattr("lorakit.inference.file_predictions._BATCHES_AT_ONCE", {True: 2, False: 2})
    output, partial = tmp_path / "out.csv", tmp_path / ".out.csv.partial"

    def stop(done, _rows):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(classifier, reviews, output, settings, on_progress=stop)
    lines = partial.read_bytes().splitlines(keepends=True)
    lines[damaged] = b"\0" * (len(lines[damaged]) - 1) + b"\n"
    partial.write_bytes(b"".join(lines))
    made = predict_file(classifier, reviews, output, settings)
    assert (made.resumed, made.rows) == ({0: 0, 1: 0, 3: 2}[damaged], 5)


def test_a_full_disk_is_named(classifier, reviews, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lorakit.inference.file_predictions.os.fsync", full)
    with pytest.raises(DiskError, match=r"\.out\.csv\.partial: the disk at .* is full"):
        predict_file(classifier, reviews, tmp_path / "out.csv")


def test_another_file_or_adapter_begins_anew(classifier, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr("lorakit.inference.file_predictions._BATCHES_AT_ONCE", {True: 2, False: 2})
    settings = PredictionSettings(batch_rows=1)

    def stop(done, _rows):
        if done == 2:
            raise KeyboardInterrupt

    for name, options in {"a.csv": {"identity": "other"}, "b.csv": {}}.items():
        with pytest.raises(KeyboardInterrupt):
            predict_file(classifier, reviews, tmp_path / name, settings, on_progress=stop)
        if name == "b.csv":
            reviews.write_text(reviews.read_text("utf-8") + "y,good\n", "utf-8")
        assert predict_file(classifier, reviews, tmp_path / name, settings, **options).resumed == 0


@pytest.mark.parametrize("what", ["column", "delimiter", "base", "storage"])
def test_other_inputs_or_another_base_begin_again(classifier, tmp_path, monkeypatch, what):
    monkeypatch.setattr("lorakit.inference.file_predictions._BATCHES_AT_ONCE", {True: 2, False: 2})
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("text,other\n" + "good film,bad cat\n" * 4, "utf-8")
    settings, names = PredictionSettings(batch_rows=1), DataConfig(train="-", delimiter=",")

    def stop(done, _rows):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(classifier, path, output, settings, data=names, on_progress=stop)
    if what == "column":
        names = names.model_copy(update={"text": "other"})
    elif what == "delimiter":
        names = names.model_copy(update={"text": "text,other", "delimiter": "|"})
    elif what == "base":
        classifier = replace(classifier, base="another")
    else:
        classifier = replace(classifier, model=copy.deepcopy(classifier.model).bfloat16())
    made = predict_file(classifier, path, output, settings, data=names)
    assert (made.resumed, made.rows) == (0, 4)


def test_the_recipe_names_the_column_and_the_only_one_needs_no_name(classifier, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"review": t, "n": 1}) + "\n" for t in TEXTS), "utf-8")
    with pytest.raises(DataError, match=r"data\.text: got 'text'"):
        predict_file(classifier, path, tmp_path / "a.jsonl")
    named = DataConfig(train="-", text="review")
    assert predict_file(classifier, path, tmp_path / "a.jsonl", data=named).rows == 4
    path.write_text("".join(json.dumps({"review": t}) + "\n" for t in TEXTS), "utf-8")
    notes = []
    predict_file(classifier, path, tmp_path / "b.jsonl", on_note=notes.append)
    assert notes[0] == "The inputs are read from the column 'review' (data.text)."


def test_new_columns_do_not_hide_others(classifier, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("text,prediction\ngood,x\n", "utf-8")
    with pytest.raises(ConfigError, match="got prediction among its columns already"):
        predict_file(classifier, path, tmp_path / "out.csv")
    settings = PredictionSettings(prefix="new_")
    made = predict_file(classifier, path, tmp_path / "out.csv", settings)
    assert made.columns == ("new_prediction", "new_probability")
    assert read_csv(tmp_path / "out.csv")[0]["prediction"] == "x"


def test_a_value_that_is_no_text_is_named(classifier, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "good"}\n{"text": 5}\n', "utf-8")
    with pytest.raises(DataError, match="example 2"):
        predict_file(classifier, path, tmp_path / "out.jsonl")


def test_inputs_that_are_cut_are_counted(classifier, tmp_path):
    path, notes = tmp_path / "long.jsonl", []
    long = "good " * 2 * classifier.max_length
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (long, "good", "")))

    def stop(done, _rows):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(classifier, path, tmp_path / "out.csv", on_progress=stop)
    for resumed in (3, 0):
        made = predict_file(classifier, path, tmp_path / "out.csv", on_note=notes.append)
        assert made.resumed == resumed
        assert notes[-1] == f"Inputs that were cut to {classifier.max_length} tokens: 1."
        (tmp_path / "out.csv").unlink()


def test_two_calls_do_not_write_one_output(classifier, reviews, tmp_path):
    output = tmp_path / "out.csv"

    def again(done, _rows):
        if done == 0:
            with pytest.raises(DataError, match="another command"):
                predict_file(classifier, reviews, output)

    assert predict_file(classifier, reviews, output, on_progress=again).rows == 5


def test_words_and_texts_are_tagged(run, tiny_bert_dir, ner_jsonl, tmp_path):
    loaded = lorakit.load_run(run("TOKEN_CLS", tiny_bert_dir, ner_jsonl)).loaded
    words = [["Anna", "visits", "Oslo"], ["Rome"]]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"tokens": w}) + "\n" for w in words), "utf-8")
    predict_file(loaded, path, tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    for row, one in zip(found, tag(loaded, words), strict=True):
        assert row["prediction"] == [word.tag for word in one]
        assert row["predicted_words"] == row["tokens"]
    path.write_text('{"text": "Bob lives in Rome"}\n{"text": "!"}\n', "utf-8")
    predict_file(loaded, path, tmp_path / "texts.csv")
    rows = read_csv(tmp_path / "texts.csv")
    assert rows[0]["words"] == "Bob lives in Rome"
    assert rows[0]["prediction"].split()[3] == "B-LOC"


def test_an_adapter_that_was_trained_again_is_another_one(classifier_run, tmp_path):
    copy = tmp_path / "adapter"
    shutil.copytree(classifier_run / "adapter", copy)
    before = adapter_identity(copy)
    assert before == adapter_identity(classifier_run / "adapter")
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert adapter_identity(copy) != before
