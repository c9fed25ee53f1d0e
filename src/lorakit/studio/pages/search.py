"""Search and study: the trials while they run, and the best recipe to a new run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from nicegui import ui

from lorakit.analysis.metric_text import metric_name
from lorakit.errors import escaped
from lorakit.runs.trials import TrialReader, TrialRow, TrialTable
from lorakit.studio.blocks import SteadyPart, Text, badge, card, note, problem
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
        self._top = SteadyPart().classes("flex-col gap-4")
        self._best = SteadyPart().classes("flex-col gap-4")
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
            self._rows = SteadyPart().classes("scroll")
        self._row_of: dict[str, _TrialLine] = {}

    def show(self, table: TrialTable) -> None:
        """Draw what has changed."""
        state = _state(table)
        if state == self._shown:
            return
        self._shown = state
        self._show_progress(table)
        best = table.best
        known = None if best is None else (best.name, best.best, table.best_recipe)
        self._best.show(known, lambda: self._draw_best(table))
        self._rows.show(table.keys, lambda: self._draw_head(table.keys))
        self._show_rows(table)
        self._curves.update({one.name: one.curve for one in table.trials})
        self._show_parameters(table)

    def _show_progress(self, table: TrialTable) -> None:
        ended = sum(one.status not in ("waiting", "running") for one in table.trials)
        failed = sum(one.status == "failed" for one in table.trials)
        so_far = "" if table.is_over else " so far"  # more are sampled when there is room
        text = f"{ended:,} of {len(table.trials):,} trials{so_far} have ended"
        text = f"{text}, {failed:,} of them failed." if failed else f"{text}."

        def draw() -> None:
            if table.problem is not None:
                problem(table.problem)
            note(text)
            if not table.trials:
                note("The trials appear when the first one starts.")

        self._top.show((table.problem, text), draw)

    def _draw_best(self, table: TrialTable) -> None:
        if table.best is None:
            return
        with card("Best so far" if table.best_recipe is None else "Best"):
            values = ", ".join(f"{key} = {_text(table.best.values[key])}" for key in table.keys)
            Text("p", f"{table.best.name}: {self._metric} {_text(table.best.best)} with {values}")
            trial = f"{self._path}/trials/{table.best.name}"
            with ui.element("div").classes("flex-row gap-2"):
                recipe = table.best_recipe
                name = "Best" if recipe is None else recipe.stem.capitalize()
                target = f"/new?{urlencode({'from': self._path})}"
                ui.link(f"{name} recipe to a new run", target).classes("button")
                ui.link("Open this trial", f"/run/{quote(trial)}").classes("button button-quiet")

    def _draw_head(self, keys: Sequence[str]) -> None:
        numbers = (f"best {self._metric}", "epochs", "time")
        self._row_of.clear()
        with ui.element("table").classes("plain"):
            with ui.element("thead"), ui.element("tr"):
                for name in ("trial", "status", *keys):
                    Text("th", name).props("scope=col")
                for name in numbers:
                    Text("th", name).props("scope=col").classes("number")
            self._body = ui.element("tbody")

    def _show_rows(self, table: TrialTable) -> None:
        """Show each trial in a row that stays the same element, wherever it moves."""
        best = None if table.best is None else table.best.name
        for place, one in enumerate(_sort_trials(table)):
            if one.name not in self._row_of:
                with self._body:
                    self._row_of[one.name] = _TrialLine(f"{self._path}/trials/{one.name}")
            line = self._row_of[one.name]
            line.show(one, table.keys, is_best=one.name == best)
            line.move_to(place)

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


class _TrialLine:
    """The row of one trial."""

    def __init__(self, path: str):
        self._path = path
        self._row = ui.element("tr")
        with self._row:
            self._name, self._status = SteadyPart("td"), SteadyPart("td")
        self._cells: list[Text] = []

    def show(self, one: TrialRow, keys: Sequence[str], *, is_best: bool) -> None:
        has_recipe = (current().root / self._path / "recipe.yaml").is_file()
        self._name.show((one.name, has_recipe), lambda: self._draw_name(one.name, has_recipe))
        self._status.show((one.status, one.error), lambda: _draw_status(one))
        numbers = (_text(one.best), str(one.epochs), f"{one.wall_s:,.0f} s")
        texts = (*(_text(one.values[key]) for key in keys), *numbers)
        if not self._cells:
            with self._row:
                self._cells = [Text("td", text) for text in texts]
            for cell in self._cells[len(keys) :]:
                cell.classes("number")
        for cell, text in zip(self._cells, texts, strict=True):
            cell.show(text)
        self._cells[len(keys)].classes(**{"add" if is_best else "remove": "font-semibold"})

    def move_to(self, place: int) -> None:
        """Move the row within its table, if it stands elsewhere."""
        table = self._row.parent_slot
        if table is not None and table.children.index(self._row) != place:
            self._row.move(target_index=place)

    def _draw_name(self, name: str, has_recipe: bool) -> None:
        if has_recipe:
            ui.link(escaped(name), f"/run/{quote(self._path)}").classes("truncate")
        else:
            Text("span", name)


def _draw_status(one: TrialRow) -> None:
    badge(one.status, _STATUS_KINDS.get(one.status))
    if one.error:
        Text("p", one.error).classes("text-sm text-bad trial-error")


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
