"""The files of a run, to download."""

from __future__ import annotations

from pathlib import Path

from nicegui import ui

from lorakit.errors import LorakitError, escaped
from lorakit.files.disks import size_text
from lorakit.runs.run_files import RunFile, files_of
from lorakit.studio.blocks import Text, note, notify_problem
from lorakit.studio.context import current

_SHOWN = 60


def show_files(run: Path) -> None:
    """List the files of a run, each with a button that downloads it."""
    found = files_of(run)
    if not found:
        note("There is no file yet.")
        return
    with ui.element("div").classes("scroll"), ui.element("table").classes("plain"):
        with ui.element("thead"), ui.element("tr"):
            Text("th", "file").props("scope=col")
            Text("th", "size").props("scope=col").classes("number")
            Text("th", "").props("aria-hidden=true")
        with ui.element("tbody"):
            for file in found[:_SHOWN]:
                _row(run, file)
    if len(found) > _SHOWN:
        note(f"{len(found) - _SHOWN:,} more files are in {run}.")


def _row(run: Path, file: RunFile) -> None:
    with ui.element("tr"):
        Text("td", file.name).classes("mono")
        Text("td", size_text(file.size_bytes)).classes("number")
        with ui.element("td"):
            button = ui.button(icon="download", color=None).props("flat round dense")
            button.props["aria-label"] = f"Download {escaped(file.name)}"
            button.on_click(lambda: _download(run, file.name))


def _download(run: Path, name: str) -> None:
    """Send a file, if it is still there and below the folder of runs."""
    try:
        path = current().path(current().relative(run / name))
    except LorakitError as error:
        notify_problem(str(error))
        return
    ui.download.file(path)
