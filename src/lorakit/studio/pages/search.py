"""Search and study: the trials while they run, and the best recipe to a new run."""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

from nicegui import ui

from lorakit.analysis.metric_text import metric_name
from lorakit.errors import escaped
from lorakit.runs.trials import TrialReader, TrialRow, TrialTable
from lorakit.studio.blocks import Text, badge, card, note, problem
from lorakit.studio.chart_options import parallel_option, scatter_option
from lorakit.studio.charts import Chart, LineChart
from lorakit.studio.context import current
from lorakit.studio.frame import page, set_title
from lorakit.studio.live import every

_POLL_S = 1.0
_STATUS_KINDS = {"stopped": "interrupted", "waiting": "queued"}


@page("/search/{path:path}", "Search")
async def search(path: str) -> None:
    """Show a search or study below the folder of runs."""
    directory = current().path(path)
    reader = await asyncio.to_thread(lambda: TrialReader(directory))
    set_title(path)
    table = await asyncio.to_thread(reader.read)
    view = _View(reader, path)
    view.show(table)

    async def follow() -> None:
        view.show(await asyncio.to_thread(reader.read))

    every(_POLL_S, follow)


class _View:
    """The parts of the page; each is drawn again when what it shows has changed."""

    def __init__(self, reader: TrialReader, path: str):
        self._path, self._shown = path, None
        metric = f"validation {metric_name(reader.settings.metric)}"
        self._metric = metric
        self._top = ui.element("div").classes("flex-col gap-4")
        with card("Learning curves"):
            self._curves = LineChart(
                f"The {metric} of each trial over the epochs",
                x_name="epoch",
                classes="chart chart-tall",
            )
        with card("Parameters and metric"):
            note("Each line is a trial, the thick one is the best.")
            with ui.element("div").classes("scroll"):
                self._parallel = Chart(
                    f"Parallel coordinates of the trials' parameters and their best {metric}",
                    classes="chart chart-wide",
                )
        self._scatters_card = ui.element("section").classes("card")
        with self._scatters_card:
            Text("h2", f"Best {metric} against each parameter")
            self._grid = ui.element("div").classes("grid-2")
        self._scatters: dict[str, Chart] = {}
        with card("Trials"):
            self._rows = ui.element("div").classes("scroll")

    def show(self, table: TrialTable) -> None:
        """Draw what has changed."""
        state = _state(table)
        if state == self._shown:
            return
        self._shown = state
        with self._top.clear() or self._top:
            self._show_top(table)
        with self._rows.clear() or self._rows:
            self._show_rows(table)
        self._curves.update({one.name: one.curve for one in table.trials})
        self._show_parameters(table)

    def _show_top(self, table: TrialTable) -> None:
        if table.problem is not None:
            problem(table.problem)
        ended = sum(one.status not in ("waiting", "running") for one in table.trials)
        failed = sum(one.status == "failed" for one in table.trials)
        text = f"{ended:,} of {len(table.trials):,} trials have ended"
        note(f"{text}, {failed:,} of them failed." if failed else f"{text}.")
        if not table.trials:
            note("The trials appear when the first one starts.")
        if table.best is None:
            return
        with card("Best so far" if table.best_recipe is None else "Best"):
            values = ", ".join(f"{key} = {_text(table.best.values[key])}" for key in table.keys)
            Text("p", f"{table.best.name}: {self._metric} {_text(table.best.best)} with {values}")
            recipe = f"{self._path}/trials/{table.best.name}"
            with ui.element("div").classes("flex-row gap-2"):
                target = f"/new?{urlencode({'from': recipe})}"
                ui.link("Best recipe to a new run", target).classes("button")
                ui.link("Open this trial", f"/run/{recipe}").classes("button button-quiet")

    def _show_rows(self, table: TrialTable) -> None:
        numbers = (f"best {self._metric}", "epochs", "time")
        with ui.element("table").classes("plain"):
            with ui.element("thead"), ui.element("tr"):
                for name in ("trial", "status", *table.keys):
                    Text("th", name).props("scope=col")
                for name in numbers:
                    Text("th", name).props("scope=col").classes("number")
            with ui.element("tbody"):
                for one in _sort_trials(table):
                    with ui.element("tr"):
                        self._show_row(one, table)

    def _show_row(self, one: TrialRow, table: TrialTable) -> None:
        with ui.element("td"):
            if (current().root / self._path / "trials" / one.name / "recipe.yaml").is_file():
                link = ui.link(escaped(one.name), f"/run/{self._path}/trials/{one.name}")
                link.classes("truncate")
            else:
                Text("span", one.name)
        with ui.element("td"):
            badge(one.status, _STATUS_KINDS.get(one.status))
            if one.error:
                Text("p", one.error).classes("text-sm text-bad trial-error")
        for key in table.keys:
            Text("td", _text(one.values[key]))
        is_best = table.best is not None and one.name == table.best.name
        value = Text("td", _text(one.best)).classes("number")
        if is_best:
            value.classes("font-semibold")
        Text("td", str(one.epochs)).classes("number")
        Text("td", f"{one.wall_s:,.0f} s").classes("number")

    def _show_parameters(self, table: TrialTable) -> None:
        known = [one for one in table.trials if one.best is not None]
        values = [one.best for one in known if one.best is not None]
        if not known or table.best is None:
            return
        columns = [(key, [one.values[key] for one in known]) for key in table.keys]
        best = next(place for place, one in enumerate(known) if one.name == table.best.name)
        self._parallel.show(
            parallel_option(columns, (self._metric, values), best, is_minimized=table.is_minimized)
        )
        for key, column in columns:
            if key not in self._scatters:
                with self._grid:
                    self._scatters[key] = Chart(f"Best {self._metric} against {escaped(key)}")
            points = list(zip((one.name for one in known), column, values, strict=True))
            self._scatters[key].show(scatter_option(points, key, self._metric))


def _state(table: TrialTable) -> object:
    """Return what changes when the page must."""
    rows = [(t.name, t.status, t.epochs, t.best, t.wall_s, len(t.curve)) for t in table.trials]
    return rows, table.best_recipe, table.problem


def _sort_trials(table: TrialTable) -> list[TrialRow]:
    """Return the trials, the best first and those without a value last."""
    sign = 1 if table.is_minimized else -1
    known = [one for one in table.trials if one.best is not None]
    others = [one for one in table.trials if one.best is None]
    return sorted(known, key=lambda one: sign * (one.best or 0.0)) + others


def _text(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.5g}"
