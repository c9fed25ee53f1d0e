"""How far a run is, and the buttons that act on it."""

from __future__ import annotations

from urllib.parse import urlencode

from nicegui import ui

from lorakit.errors import escaped
from lorakit.runs.metric_log import MetricLog, kept_metrics
from lorakit.runs.run_facts import RunFacts
from lorakit.studio.blocks import Text, card

class Progress:
    """The card at the top of a run's page."""

    def __init__(self, path: str, facts: RunFacts):
        self._path, self._facts = path, facts
        with card():
            with ui.element("div").classes("flex-row gap-2 run-facts"):
                self._state = Text("span", "").classes("badge")
                for text in (facts.text("task"), facts.text("model")):
                    if text:
                        Text("span", text).classes("text-soft")
            self._bar = ui.element("progress").props('max=1 aria-label="Share of the steps"')
            self._words = Text("p", "").props('role="status"')
            with ui.element("div").classes("flex-row gap-2"):
                self._draw_buttons()
