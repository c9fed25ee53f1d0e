"""What a prediction writes."""

import json

import pytest
from datasets import Dataset

from lorakit.errors import ConfigError, DataError
from lorakit.inference.prediction_output import require_free, require_new, write_predictions
from lorakit.recipes.recipe import DataConfig


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "there.csv").write_text("x", "utf-8")
    for name, sentence in {
        "there.csv": "it exists already",
        "out.xlsx": "expected one of .csv, .tsv, .jsonl, .parquet",
        "nowhere/out.csv": "there is no folder",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            require_new(tmp_path / name)
    require_new(tmp_path / "out.csv")


@pytest.mark.parametrize(("separator", "cell"), [(None, "a b c"), ("|", "a b|c")])
def test_labels_are_joined_as_training_reads_them(tmp_path, separator, cell):
    examples = Dataset.from_dict({"text": ["one", "two"]})
    data = DataConfig(train="x.csv", label_separator=separator)
    made = [[["a b", "c"], [0.9, 0.8]], None]
    output = tmp_path / "out.csv"
    write_predictions(output, examples, ["prediction", "probability"], made, data)
    lines = output.read_text(encoding="utf-8").splitlines()
    assert lines == ["text,prediction,probability", f"one,{cell},0.9 0.8", "two,,"]


def test_a_cell_holds_no_object(tmp_path):
    examples = Dataset.from_dict({"meta": [{"a": 1}]})
    with pytest.raises(DataError, match="the column 'meta' holds lists or objects"):
        write_predictions(tmp_path / "out.csv", examples, ["p"], [["x"]], DataConfig(train="x"))
    write_predictions(tmp_path / "out.jsonl", examples, ["p"], [["x"]], DataConfig(train="x"))
    written = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert written == {"meta": {"a": 1}, "p": "x"}


def test_a_new_column_may_not_be_there(tmp_path):
    examples = Dataset.from_dict({"text": ["one"], "prediction": ["x"]})
    with pytest.raises(ConfigError, match="got prediction among its columns already"):
        require_free(["prediction", "probability"], examples, tmp_path / "in.csv")
    require_free(["new_prediction"], examples, tmp_path / "in.csv")
