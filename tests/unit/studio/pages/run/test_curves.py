import json

import pytest
from nicegui import ui

from lorakit.runs.metric_log import MetricLog
from lorakit.studio.charts import LineChart
from lorakit.studio.pages.run.curves import Curves

pytestmark = pytest.mark.anyio


async def test_a_panel_appears_with_its_first_point_and_goes_with_its_series(user, tmp_path):
    path = tmp_path / "metrics.jsonl"
    log, made = MetricLog(path), []

    @ui.page("/curves")
    def show():
        made.append(Curves())
        made[0].update(log, None)

    await user.open("/curves")
    await user.should_see("The curves begin with the first step")
    path.write_text(json.dumps({"event": "step", "step": 1, "loss": 1.0, "grad_norm": 1.0}) + "\n")
    log.read()
    made[0].update(log, None)
    await user.should_see("Gradient norm")
    await user.should_not_see("The curves begin with the first step")
    path.write_text(json.dumps({"event": "step", "step": 1, "loss": 1.0}) + "\n")
    log.read()
    made[0].update(log, None)
    await user.should_not_see("Gradient norm")
    await user.should_see("Loss")


async def test_between_two_looks_at_all_only_the_first_curve_grows(user, tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log, made, updated = MetricLog(path), [], []

    def write(step, **values):
        with path.open("a") as file:
            file.write(json.dumps({"event": "step", "step": step, **values}) + "\n")
        log.read()

    @ui.page("/curves")
    def show():
        made.append(Curves())
        made[0].update(log, None)

    write(1, loss=1.0, grad_norm=1.0)
    await user.open("/curves")
    update = LineChart.update
    monkeypatch.setattr(
        LineChart,
        "update",
        lambda self, *given: (updated.append(self.description), update(self, *given)),
    )
    write(2, loss=1.0, grad_norm=1.0)
    made[0].update(log, None, only_main=True)
    assert updated == ["Loss over the steps"]
    write(3, loss=1.0, grad_norm=1.0, learning_rate=1.0)  # a curve that is not there yet
    made[0].update(log, None, only_main=True)
    assert set(updated[1:]) == {
        f"{name} over the steps" for name in ("Loss", "Gradient norm", "Learning rate")
    }
    path.unlink()  # the run is deleted
    log.read()
    made[0].update(log, None, only_main=True)
    await user.should_see("The curves begin with the first step")
