import json

import pytest
from nicegui import ui

from lorakit.runs.metric_log import MetricLog
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
