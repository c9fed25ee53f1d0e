import json
import math
import os

import pytest

from lorakit.runs.metric_log import MetricLog, kept_evaluation, kept_metrics


def row(step, event="step", **values):
    return json.dumps({"event": event, "step": step, "epoch": step / 10, **values}) + "\n"


@pytest.fixture
def log(tmp_path):
    return MetricLog(tmp_path / "metrics.jsonl")


def append(log, text):
    with log.path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_rows_are_read_as_they_appear(log):
    assert not log.read()
    append(log, row(1, loss=2.0, learning_rate=0.1, wall_s=3.5))
    assert log.read()
    assert not log.read()
    append(log, row(2, loss=1.5) + row(2, "evaluation", eval_loss=1.6))
    assert log.read()
    assert list(log.series) == ["loss", "learning_rate", "eval_loss"]
    assert list(log.series["loss"].steps) == [1, 2]
    assert list(log.series["loss"].values) == [2.0, 1.5]
    assert (log.step, log.epoch, log.wall_s) == (2, 0.2, 3.5)
    assert log.evaluations[2]["eval_loss"] == 1.6


def test_a_torn_last_line_waits_for_its_end(log):
    whole = row(2, loss=1.5)
    append(log, row(1, loss=2.0) + whole[:20])
    assert log.read()
    assert len(log.series["loss"]) == 1
    assert not log.read()
    append(log, whole[20:])
    assert log.read()
    assert log.series["loss"].last == 1.5
    assert log.problem is None


def test_a_replaced_file_is_read_from_its_beginning(log):
    append(log, row(1, loss=2.0) + row(2, loss=1.5) + row(3, loss=1.2))
    log.read()
    partial = log.path.with_name("partial")
    partial.write_text(row(1, loss=2.0))
    os.replace(partial, log.path)
    assert log.read()
    assert list(log.series["loss"].steps) == [1]
    append(log, row(2, loss=9.0))
    log.read()
    assert list(log.series["loss"].values) == [2.0, 9.0]


def test_a_file_rewritten_in_place_is_another_file(log):
    append(log, row(1, loss=2.0) + row(2, loss=1.5))
    log.read()
    text = row(1, loss=7.0) + row(2, loss=6.5) + row(3, loss=6.0)
    log.path.write_text(text)
    assert log.read()
    assert list(log.series["loss"].values) == [7.0, 6.5, 6.0]


def test_a_deleted_file_leaves_nothing(log):
    append(log, row(1, loss=2.0))
    log.read()
    log.path.unlink()
    assert log.read()
    assert not log.series
    assert not log.read()


def test_repeated_steps_of_a_resumed_run_replace_the_earlier_ones(log):
    append(log, "".join(row(step, loss=float(step)) for step in range(1, 7)))
    append(log, row(6, "evaluation", eval_loss=1.0) + row(6, "summary", train_loss=3.0))
    log.read()
    before = log.series["loss"].revision
    append(log, row(4, loss=40.0) + row(5, loss=50.0))
    log.read()
    assert list(log.series["loss"].steps) == [1, 2, 3, 4, 5]
    assert log.series["loss"].values[-2:].tolist() == [40.0, 50.0]
    assert log.series["loss"].revision > before
    assert log.summary == {}  # the run goes on


def test_clocks_that_jump_change_nothing(log):
    append(log, row(1, loss=2.0, wall_s=100.0) + row(2, loss=1.0, wall_s=-50.0))
    os.utime(log.path, (0, 0))
    log.read()
    os.utime(log.path, (2**33, 2**33))
    assert not log.read()
    append(log, row(3, loss=0.5, wall_s=1e12))
    os.utime(log.path, (0, 0))
    assert log.read()
    assert list(log.series["loss"].steps) == [1, 2, 3]


def test_what_is_not_a_number_is_a_gap_and_texts_are_no_series(log):
    huge = '{"event": "step", "step": 3, "loss": 1' + "0" * 400 + "}\n"
    append(log, row(1, loss=None, note="text", flag=True) + row(2, loss=float("inf")) + huge)
    log.read()
    assert list(log.series) == ["loss"]
    assert all(map(math.isnan, log.series["loss"].values))
    assert log.series["loss"].last is None


@pytest.mark.parametrize(
    "damaged", ["{", "[1]", "5", "{}", '{"step": "x"}', '{"step": true}', "", "[" * 9999]
)
def test_a_damaged_line_is_named_and_the_others_are_shown(log, damaged):
    append(log, row(1, loss=2.0) + damaged + "\n" + row(2, loss=1.0))
    log.read()
    assert len(log.series["loss"]) == 2
    assert log.problem is not None
    assert f"{log.path}: line 2 is not a JSON object" in log.problem


def test_bytes_that_are_no_text_are_a_damaged_line(log):
    log.path.write_bytes(b"\xff\xfe\x00\n" + row(1, loss=1.0).encode())
    log.read()
    assert "line 1" in log.problem
    assert log.series["loss"].last == 1.0


def test_a_folder_in_the_place_of_the_file_is_a_problem(log):
    log.path.mkdir()
    assert log.read()
    assert log.problem.startswith(f"Cannot read {log.path}: Is a directory")
    assert not log.read()


def test_twenty_thousand_rows_are_read_once(log, monkeypatch):
    append(log, "".join(row(step, loss=1 / step) for step in range(1, 20_001)))
    log.read()
    assert len(log.series["loss"]) == 20_000
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or loads(line))
    append(log, row(20_001, loss=0.0))
    log.read()
    assert len(parsed) == 1


def test_metrics_are_those_of_the_evaluation_that_is_kept(log):
    append(log, row(0, "guessing", eval_accuracy=0.5, count=4))
    append(log, row(0, "evaluation", eval_accuracy=0.99))
    append(log, row(1, loss=3.0) + row(2, "evaluation", eval_accuracy=0.9, eval_loss=0.7))
    append(log, row(4, "evaluation", eval_accuracy=0.8, eval_loss=0.4, wall_s=9.0))
    log.read()
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    assert kept_evaluation(log, {"training": best})["step"] == 2
    loss = best | {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    assert kept_evaluation(log, {"training": loss})["step"] == 4
    assert kept_evaluation(log, {"training": best | {"metric_for_best_model": "x"}})["step"] == 4
    assert kept_evaluation(log, {})["step"] == 4
    metrics = kept_metrics(log, {"training": "damaged"})
    assert metrics == {"eval_accuracy": 0.8, "eval_loss": 0.4, "train_loss": 3.0, "wall_s": 9.0}
    append(log, row(4, "summary", train_loss=2.5, train_tokens_per_s=100.0, wall_s=10.0))
    log.read()
    assert kept_metrics(log, {})["train_loss"] == 2.5
    assert log.guessing["eval_accuracy"] == 0.5


def test_a_run_without_an_evaluation_has_no_metrics_of_one(log):
    log.read()
    assert kept_evaluation(log, {}) is None
    assert kept_metrics(log, {}) == {"wall_s": 0.0}
