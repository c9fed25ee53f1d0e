"""`lorakit predict`: a file with new columns."""

import csv

import pytest


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_is_predicted_beside_itself(cli, cls_run, tmp_path):
    file = tmp_path / "reviews.csv"
    file.write_text("id,text\n7,the film was good\n8,\n", "utf-8")
    result = cli("predict", cls_run, file, "--probabilities")
    assert result.exit_code == 0, result.stderr
    output = tmp_path / "reviews.predictions.csv"
    first, second = rows_of(output)
    assert first["id"] == "7"
    assert first["prediction"] in ("positive", "negative")
    assert float(first["probability_positive"]) + float(first["probability_negative"]) > 0.99
    assert second["prediction"] == ""
    assert str(output) in result.stdout
    assert "predictions are empty: 1." in result.stderr
    assert "Predicted 2 rows; new columns: prediction, probability, " in result.stderr
    again = cli("predict", cls_run, file)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_columns_are_named_as_in_the_recipe(cli, cls_run, tmp_path):
    file = tmp_path / "reviews.csv"
    file.write_text("id,review\n7,the film was good\n", "utf-8")
    refused = cli("predict", cls_run, file, "--output", tmp_path / "out.csv")
    assert refused.exit_code == 2
    assert "data.text: got 'text'" in refused.stderr
    result = cli("predict", cls_run, file, "data.text=review", "--output", tmp_path / "out.csv")
    assert result.exit_code == 0, result.stderr
    assert rows_of(tmp_path / "out.csv")[0]["review"] == "the film was good"


@pytest.mark.parametrize("change", ["lora.r=2", "model=other", "data.max_length=4", "data.txt=a"])
def test_changes_without_effect_are_refused(cli, cls_run, cls_csv, change):
    result = cli("predict", cls_run, cls_csv, change)
    assert result.exit_code == 2
    assert f"Cannot apply the overrides: got {change}, expected one of data.text," in result.stderr


def test_a_missing_file(cli, cls_run, tmp_path):
    (tmp_path / "reviews.csv").touch()
    result = cli("predict", cls_run, tmp_path / "revews.csv")
    assert result.exit_code == 2
    assert f"No file to predict: got nothing there at '{tmp_path}/revews.csv'" in result.stderr
    assert "Did you mean 'reviews.csv'? Check the path." in result.stderr
    result = cli("predict", cls_run, tmp_path)
    assert f"No file to predict: got a folder at '{tmp_path}', expected a csv" in result.stderr


def test_an_ending_that_cannot_be_read_is_that_of_the_input(cli, cls_run, tmp_path):
    (tmp_path / "reviews.txt").touch()
    result = cli("predict", cls_run, tmp_path / "reviews.txt")
    assert result.exit_code == 2
    assert f"Could not read the file to predict: got '{tmp_path}/reviews.txt' with" in result.stderr


def test_prompts_are_answered(cli, lm_run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "what colour is the grass?"}\n', "utf-8")
    result = cli("predict", lm_run, file, "--max-new-tokens", 3, "--output", tmp_path / "o.csv")
    assert result.exit_code == 0, result.stderr
    assert rows_of(tmp_path / "o.csv")[0]["prompt"] == "what colour is the grass?"
