"""Adapters: what each is made of; combining, merging, converting and exporting them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import quote

from nicegui import ui

from lorakit.errors import MissingFileError, escaped
from lorakit.files.disks import size_text
from lorakit.quickstart.model_files import short_base_name
from lorakit.runs.adapters import AdapterFacts, find_adapters
from lorakit.studio.blocks import Text, badge, card, empty
from lorakit.studio.context import current
from lorakit.studio.frame import page, set_title
from lorakit.studio.pages.adapters.combining import CombiningPart
from lorakit.studio.pages.adapters.commands import CommandsPart
from lorakit.studio.pages.adapters.contents import draw_contents, ranks_text
from lorakit.studio.pages.adapters.writing import draw_writing

_COLUMNS = ("Adapter", "Task", "Base", "Rank", "Parameters", "Size")
_NUMBERS = _COLUMNS[3:]


@page("/adapters", "Adapters")
async def adapters(path: str = "") -> None:
    """List the adapters, or show one.

    Args:
        path: Path of a run or an adapter below the folder; empty lists all.
    """
    studio = current()
    found = await asyncio.to_thread(find_adapters, studio.root)
    if not path:
        _draw_list(found)
        return
    place = studio.path(path)
    chosen = next((each for each in found if place in (each.place, each.directory)), None)
    if chosen is None:
        raise MissingFileError(
            f"No adapter at {path!r} in {studio.root}: expected a run that has finished, or a "
            "directory with adapter_config.json. Choose one from the list of adapters."
        )
    set_title(chosen.name)
    ui.link("All adapters", "/adapters")
    commands = CommandsPart(studio)
    await draw_contents(studio, chosen, commands)
    if chosen.problem is None:
        kind = (chosen.base, chosen.task)
        alike = [each for each in found if not each.problem and (each.base, each.task) == kind]
        CombiningPart(studio, chosen, alike, commands)
        draw_writing(studio, chosen, commands)
    commands.place_here()


def _draw_list(found: Sequence[AdapterFacts]) -> None:
    if not found:
        empty(
            "There is no adapter in this folder yet; a run that finishes has one.",
            "New run",
            "/new",
        )
        return
    with (
        card(),
        ui.element("div").classes("scroll").props('tabindex=0 role=region aria-label="Adapters"'),
        ui.element("table").classes("plain"),
    ):
        with ui.element("thead"), ui.element("tr"):
            for name in _COLUMNS:
                Text("th", name).props("scope=col").classes("number" if name in _NUMBERS else "")
        with ui.element("tbody"):
            for each in found:
                _draw_row(each)


def _draw_row(adapter: AdapterFacts) -> None:
    with ui.element("tr"):
        with ui.element("td"):
            ui.link(escaped(adapter.name), f"/adapters?path={quote(adapter.name)}")
        if adapter.problem is not None:
            with ui.element("td").props(f"colspan={len(_COLUMNS) - 1}"):
                badge("damaged")
                Text("span", f" {adapter.problem}")
            return
        Text("td", adapter.task or "")
        Text("td", short_base_name(adapter.base or ""))
        Text("td", ranks_text(adapter)).classes("number")
        Text("td", f"{adapter.parameters:,}").classes("number")
        Text("td", size_text(adapter.size_bytes)).classes("number")
