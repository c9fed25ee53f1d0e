"""The live curves of a run."""

from __future__ import annotations

from nicegui import ui

from lorakit.errors import escaped
from lorakit.runs.metric_log import MetricLog
from lorakit.runs.panels import Panel, panels
from lorakit.studio.blocks import card, note
from lorakit.studio.charts import LineChart


class Curves:
    """One card for each panel; a card appears with its first point."""

    def __init__(self) -> None:
        self._grid = ui.element("div").classes("grid-2")
        with self._grid:
            self._waiting = ui.element("div")
            with self._waiting:
                note("The curves begin with the first step that is logged.")
        self._charts: dict[str, LineChart] = {}
        self._cards: dict[str, ui.element] = {}

    def update(
        self, log: MetricLog, planned_bytes: float | None, *, only_main: bool = False
    ) -> None:
        """Draw what is new.

        Args:
            log: The metrics of the run.
            planned_bytes: Its planned peak memory.
            only_main: Draw only the first curve, the loss; the others take what is new later.
        """
        found = panels(log, planned_bytes)
        if found and only_main and all(panel.title in self._charts for panel in found):
            self._charts[found[0].title].update(found[0].series, found[0].levels)
            return
        self._waiting.set_visibility(not found)
        for title in self._cards.keys() - {panel.title for panel in found}:
            self._cards.pop(title).delete()
            del self._charts[title]
        for panel in found:
            chart = self._charts.get(panel.title) or self._add(panel)
            chart.update(panel.series, panel.levels)

    def _add(self, panel: Panel) -> LineChart:
        title = escaped(panel.title)
        shown = f"{title} ({panel.unit})" if panel.unit else title
        with self._grid, card(shown) as section:
            section.style(f"order: {panel.place}")
            chart = LineChart(
                f"{shown} over the steps",
                title=title.lower(),
                scale=panel.scale,
                from_zero=panel.from_zero,
            )
        self._cards[panel.title], self._charts[panel.title] = section, chart
        return chart
