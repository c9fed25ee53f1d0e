"""Charts send what is new, and only that; texts stay texts."""

import math

import pytest
from nicegui import ui

from lorakit.runs.metric_log import Series
from lorakit.studio.charts import LineChart

pytestmark = pytest.mark.anyio


def series_of(*values):
    series = Series()
    for step, value in enumerate(values, 1):
        series.add(step, value)
    return series


@pytest.fixture
async def chart(user, monkeypatch):
    """A chart on a page, and the messages it sends."""
    made = []

    @ui.page("/chart")
    def show():
        made.append(LineChart("Loss", title="loss", scale=2))

    await user.open("/chart")
    messages = []
    monkeypatch.setattr(made[0], "_send", messages.append)
    return made[0], messages


async def test_only_new_points_are_sent(chart):
    chart, messages = chart
    loss = series_of(*range(5000))
    chart.update({"loss": loss})
    assert messages[-1]["order"] == ["loss"]
    assert messages[-1]["lines"][0]["count"] == 5000
    chart.update({"loss": loss})
    assert len(messages) == 1
    loss.add(5001, 7.0)
    chart.update({"loss": loss})
    (line,) = messages[-1]["lines"]
    assert len(line["points"]) <= 4
    assert line["points"][-1] == (5001, 14.0)


async def test_a_line_that_is_gone_is_removed(chart):
    chart, messages = chart
    chart.update({"a": series_of(1.0), "b": series_of(2.0), "empty": Series()})
    assert messages[-1]["order"] == ["a", "b"]
    chart.update({"b": series_of(2.0)})
    assert messages[-1]["order"] == ["b"]
    chart.update({})
    assert messages[-1]["order"] == []


async def test_a_level_is_as_long_as_the_lines(chart):
    chart, messages = chart
    loss = series_of(1.0, 2.0)
    chart.update({"loss": loss}, {"planned": 3.0})
    assert messages[-1]["order"] == ["loss", "planned"]
    assert messages[-1]["lines"][-1]["points"] == [(1.0, 6.0), (2.0, 6.0)]
    loss.add(9, math.nan)
    chart.update({"loss": loss}, {"planned": 3.0})
    assert messages[-1]["lines"][0]["points"][-1] == (9, None)
    assert messages[-1]["lines"][-1]["points"][-1] == (9.0, 6.0)


async def test_a_zoomed_chart_gets_every_point_of_its_range(chart):
    chart, messages = chart
    loss = series_of(*range(20_000))
    chart.update({"loss": loss})
    chart._zoom(type("Event", (), {"args": [100, 200]}))
    steps = [step for step, _ in messages[-1]["lines"][0]["points"]]
    assert set(range(100, 201)) <= set(steps)
    assert (steps[0], steps[-1]) == (1, 20_000)
    loss.add(20_001, 0.0)
    chart.update({"loss": loss})
    assert messages[-1]["lines"][0]["kept"] == 0
    chart._zoom(type("Event", (), {"args": None}))
    assert 150 not in [step for step, _ in messages[-1]["lines"][0]["points"]] or len(steps) > 200


async def test_names_are_short_and_have_no_control_characters(chart):
    chart, messages = chart
    chart.update({"\x1b[31m" + "x" * 100: series_of(1.0)})
    name = messages[-1]["lines"][0]["name"]
    assert name.startswith("\\x1b[31m")
    assert len(name) == 60
