import json

import pytest

from lorakit.runs.metric_log import MetricLog
from lorakit.runs.panels import panels


@pytest.fixture
def log(tmp_path):
    def read(*rows):
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        log = MetricLog(path)
        log.read()
        return log

    return read


def test_series_that_belong_together_share_a_panel(log):
    step = {"loss": 1.0, "grad_norm": 2.0, "learning_rate": 0.1, "train_tokens_per_s": 9.0}
    found = panels(
        log(
            {"event": "guessing", "step": 0, "eval_loss": 0.7, "eval_accuracy": 0.5},
            {"event": "step", "step": 1, "peak_memory_bytes": 5e8, "entropy": 0.1, **step},
            {"event": "evaluation", "step": 1, "eval_loss": 1.1, "eval_accuracy": 0.5}
            | {"eval_perplexity": 3.0, "eval_f1": 0.4, "eval_f1_😀 <b>": 0.3},
        ),
        planned_bytes=6e8,
    )
    assert [panel.title for panel in found] == [
        "Loss",
        "Validation metrics",
        "F1 by class",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
        "Peak memory",
        "Entropy",
        "Validation perplexity",
    ]
    by_title = {panel.title: panel for panel in found}
    assert list(by_title["Loss"].series) == ["training", "validation"]
    assert by_title["Loss"].levels == {"guessing": 0.7}
    assert list(by_title["Validation metrics"].series) == ["accuracy", "f1"]
    assert list(by_title["F1 by class"].series) == ["😀 <b>"]
    memory = by_title["Peak memory"]
    assert (memory.unit, memory.levels, memory.scale) == ("GB", {"planned": 6e8}, 1e-9)
    assert memory.from_zero and not by_title["Loss"].from_zero


def test_a_run_without_a_row_has_no_panel(log):
    assert panels(log(), planned_bytes=1.0) == []
    assert panels(log({"event": "guessing", "step": 0, "eval_loss": "x"})) == []
