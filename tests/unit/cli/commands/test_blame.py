"""`lorakit blame`: rows with their places, and questions that are none."""

import json

import pytest

from fixtures.printed import flat


def test_the_rows_behind_mistakes_are_listed_and_written(cli, cls_training, tmp_path):
    run, _ = cls_training
    file = tmp_path / "all.jsonl"
    result = cli("blame", run, "--mistakes", "--top", 3, "--output", file)
    assert result.exit_code == 0, result.output
    assert "The 3 examples that made the mistakes worst, of " in flat(result.output)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["influence"] >= rows[-1]["influence"]
    assert f"{rows[0]['source']}:{rows[0]['line']}" in result.output
    assert str(file) in result.output
    again = cli("blame", run, "--mistakes", "--output", file)
    assert again.exit_code == 2 and "got a file that already exists" in flat(again.output)


def test_an_answer_is_looked_into(cli, cls_training):
    result = cli("blame", cls_training[0], "a fine film", "--top", 2)
    assert result.exit_code == 0, result.output
    assert "The 2 examples that made the answer likeliest, of " in flat(result.output)
    assert ", which the adapter predicts." in flat(result.output)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got neither an answer and --mistakes"),
        (["a", "--mistakes"], "got both an answer and --mistakes"),
        (["--mistakes", "--retrain"], "--retrain requires --drop N: got it alone."),
        (["--mistakes", "--drop", "3"], "--drop requires --retrain: got it alone."),
        (["a", "--drop", "3", "--retrain"], "got --drop with an answer, expected --mistakes"),
        (["--mistakes", "--drop", "900", "--retrain"], "No examples would be left: got --drop 900"),
        (["--mistakes", "--output", "none/all.jsonl"], "got no directory none, expected one that"),
        ([" "], "There is no answer to look at: got an empty text"),
        (["a", "--prompt", "b"], "asked about a text: got --prompt too, expected the text alone"),
        (["a", "--label", "none"], "No such label in --label: got 'none', expected"),
    ],
)
def test_questions_that_are_none_are_refused(cli, cls_training, words, message):
    result = cli("blame", cls_training[0], *words)
    assert result.exit_code == 2
    assert message in flat(result.output)
    assert "influence" not in result.output  # nothing was computed


def test_what_is_no_run_is_refused(cli, tmp_path):
    result = cli("blame", tmp_path, "--mistakes")
    assert result.exit_code == 2 and "No adapter in" in result.output
