"""Compare: curves of any runs on each other, differences of their recipes, field against metric."""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

from nicegui import ui

from lorakit.errors import LorakitError, escaped
from lorakit.runs import compare as comparison
from lorakit.runs.compare import ComparedRun
from lorakit.runs.paths import join_paths, split_paths
from lorakit.studio.blocks import card, empty, note, problem, table
from lorakit.studio.chart_options import scatter_option
from lorakit.studio.charts import Chart, LineChart
from lorakit.studio.context import current
from lorakit.studio.frame import page
from lorakit.studio.live import every

_POLL_S = 1.0
_MOST_RUNS = 24


@page("/compare", "Compare")
async def compare(runs: str = "") -> None:
    """Compare the runs whose paths are given, separated by commas; see `split_paths`."""
    names = split_paths(runs)
    _show_choice(names, await asyncio.to_thread(_run_names))
    if not names:
        return
    if len(names) > _MOST_RUNS:
        problem(
            f"Cannot compare {len(names)} runs: got more than {_MOST_RUNS}, whose lines could not "
            "be told apart. Choose fewer."
        )
        return
    compared, problems = await asyncio.to_thread(_read, names)
    for sentence in problems:
        problem(sentence)
    for one in compared:
        if one.problem is not None:
            problem(one.problem)
    if compared:
        _show_curves(compared)
        _show_metrics(compared)
        _show_differences(compared)
        _show_scatter(compared)


def _read(names: list[str]) -> tuple[list[ComparedRun], list[str]]:
    compared: list[ComparedRun] = []
    problems: list[str] = []
    for name in names:
        try:
            compared.append(comparison.read_run(current().path(name), name))
        except LorakitError as error:
            problems.append(str(error))
    return compared, problems


def _show_choice(names: list[str], all_names: list[str]) -> None:
    """Let the reader choose runs; the address names them, so that it can be kept and sent."""
    known = {one: escaped(one) for one in dict.fromkeys([*all_names, *names])}
    if not known:
        empty("There is no run to compare yet.", "New run", "/new")
        return
    with card():
        choice = ui.select(
            known, value=names, multiple=True, label="Runs to compare", with_input=True
        )
        choice.props("use-chips outlined dense").classes("w-full")
        if not names:
            note("Choose two or more runs.")

        def open_chosen() -> None:
            ui.navigate.to(f"/compare?{urlencode({'runs': join_paths(choice.value)})}")

        ui.button("Compare", on_click=open_chosen).props("unelevated no-caps")


def _run_names() -> list[str]:
    """Return the runs to choose from, the newest first."""
    return [row.path for row in current().runs(fresh=True) if row.kind == "run"]


def _show_curves(compared: list[ComparedRun]) -> None:
    keys = list(dict.fromkeys(key for one in compared for key in one.log.series))
    if not keys:
        note("None of these runs has logged a step yet.")
        return
    first = "eval_loss" if "eval_loss" in keys else keys[0]
    with card("Curves"):
        choice = ui.select(
            {key: escaped(key) for key in keys}, value=first, label="Value to draw"
        ).props("outlined dense")
        chart = LineChart("The chosen value of each run over the steps", classes="chart chart-tall")

    def draw() -> None:
        key = str(choice.value)
        chart.update({one.name: one.log.series[key] for one in compared if key in one.log.series})

    async def follow() -> None:
        if any(await asyncio.to_thread(lambda: [one.log.read() for one in compared])):
            draw()

    choice.on_value_change(draw)
    draw()
    every(_POLL_S, follow)


def _show_metrics(compared: list[ComparedRun]) -> None:
    names = comparison.metric_names(compared)
    with card("Metrics"):
        rows = [(name, *(_number(one.metrics.get(name)) for one in compared)) for name in names]
        table(("metric", *(one.name for one in compared)), rows)


def _show_differences(compared: list[ComparedRun]) -> None:
    with card("Differences of the recipes"):
        rows = comparison.differences(compared)
        if not rows:
            note("The recipes are the same, except for the output.")
            return
        table(
            ("field", *(one.name for one in compared)),
            [(row.key, *row.values) for row in rows],
            numbers_from=len(compared) + 1,
        )


def _show_scatter(compared: list[ComparedRun]) -> None:
    fields = comparison.field_names(compared)
    metrics = comparison.metric_names(compared)
    if len(compared) < 2 or not fields or not metrics:
        return
    with card("A field against a metric"):
        with ui.element("div").classes("flex-row gap-4"):
            field = ui.select({f: escaped(f) for f in fields}, value=fields[0], label="Field")
            metric = ui.select({m: escaped(m) for m in metrics}, value=metrics[0], label="Metric")
            for choice in (field, metric):
                choice.props("outlined dense").classes("grow")
        chart = Chart("The chosen metric of each run against the chosen field")

    def draw() -> None:
        points = comparison.field_points(compared, str(field.value), str(metric.value))
        chart.show(scatter_option(points, str(field.value), str(metric.value)))

    field.on_value_change(draw)
    metric.on_value_change(draw)
    draw()


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.5g}"
