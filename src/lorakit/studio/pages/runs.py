"""Runs: all runs of the folder, newest first."""

from __future__ import annotations

from nicegui import ui

from lorakit.studio.blocks import Text, empty
from lorakit.studio.context import current
from lorakit.studio.frame import page


@page("/", "Runs")
def runs() -> None:
    """List the runs."""
    found = sorted(current().root.glob("**/recipe.yaml"))
    if not found:
        empty("There is no run in this folder yet.")
    with ui.element("ul"):
        for recipe in found:
            with ui.element("li"):
                Text("span", current().relative(recipe.parent))
