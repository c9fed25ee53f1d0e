import json

import pytest

from lorakit.errors import MissingFileError
from lorakit.runs.metric_log import MetricLog
from lorakit.runs.run_detail import Verdict, read_detail


@pytest.fixture
def run(tmp_path):
    recipe = "model: m\ntraining: {num_train_epochs: 4, max_steps: -1}\nlora: {r: 8}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "environment.json").write_text('{"planned_bytes": 1000}')
    return tmp_path


def share_done(run, *rows):
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = MetricLog(run / "metrics.jsonl")
    log.read()
    return read_detail(run).share_done(log)


def test_a_whole_run(run):
    detail = read_detail(run)
    assert (detail.problems, detail.planned_bytes) == ((), 1000)
    assert (detail.text("lora.r"), detail.number("lora.r")) == ("8", 8.0)
    assert detail.text("lora.r.x") == detail.text("data.train") == ""
    assert detail.number("model") is None


def test_the_share_that_is_done(run):
    assert share_done(run) == 0.0
    assert share_done(run, {"event": "step", "step": 5, "epoch": 1.0}) == 0.25
    assert share_done(run, {"event": "summary", "step": 5, "epoch": 1.0}) == 1.0
    (run / "recipe.yaml").write_text("training: {max_steps: 10}\n")
    assert share_done(run, {"event": "step", "step": 5, "epoch": 1.0}) == 0.5
    (run / "recipe.yaml").write_text("training: {}\n")
    assert share_done(run, {"event": "step", "step": 5, "epoch": 1.0}) is None


def test_damaged_files_are_named_and_the_rest_is_shown(run):
    (run / "recipe.yaml").write_text("model: [\n")
    (run / "environment.json").write_text("[]")
    (run / "report.md").write_text("# run\n")
    problems = read_detail(run).problems
    for name, problem in zip(("recipe.yaml", "environment.json", "adapter"), problems, strict=True):
        assert str(run / name) in problem


@pytest.mark.parametrize("planned", ['"many"', "null", "true"])
def test_a_plan_that_is_no_number_is_none(run, planned):
    (run / "environment.json").write_text(f'{{"planned_bytes": {planned}}}')
    assert read_detail(run).planned_bytes is None


def test_there_is_no_run(tmp_path):
    with pytest.raises(MissingFileError, match=r"no recipe\.yaml"):
        read_detail(tmp_path)


def test_the_verdict(run):
    assert read_detail(run).verdict is None
    file = run / "verdict.json"
    file.write_text('{"sentence": "Better than the base.", "outcome": "better"}')
    assert read_detail(run).verdict == Verdict("Better than the base.", "better")
    file.write_text('{"sentence": "Forgets nothing measurable.", "outcome": null}')
    assert read_detail(run).verdict == Verdict("Forgets nothing measurable.", "")
    file.write_text('{"sentence": null, "outcome": null}')
    assert read_detail(run).verdict is None and read_detail(run).problems == ()


@pytest.mark.parametrize("text", ['{"sentence": 3}', "{", "[]", '{"sentence": "x", "outcome": 1}'])
def test_a_damaged_verdict_is_told(run, text):
    (run / "verdict.json").write_text(text)
    detail = read_detail(run)
    (problem,) = detail.problems
    assert detail.verdict is None and problem.startswith(f"Cannot read {run / 'verdict.json'}: ")
