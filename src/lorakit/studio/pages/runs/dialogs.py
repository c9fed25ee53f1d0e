"""What the list of runs asks: tags and a note, whether to delete, and what is in the trash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import run, ui
from nicegui.events import GenericEventArguments

from lorakit.errors import LorakitError
from lorakit.files.disks import size_text
from lorakit.runs.index import RunSummary
from lorakit.runs.notes import write_note, write_tags
from lorakit.runs.trash import TrashedRun
from lorakit.studio.blocks import Text, note, problem
from lorakit.studio.context import current


async def edit_notes(row: RunSummary) -> bool:
    """Let tags and the note of a run be edited; return whether they were saved."""
    directory = current().path(row.path)
    with ui.dialog() as dialog, ui.element("div").classes("card dialog"):
        Text("h2", f"Tags and note of {row.path}")
        tags = ui.input_chips("Tags", value=list(row.notes.tags))
        tags.props('outlined hint="Enter adds a tag"')
        typed = ""

        def keep_typed(event: GenericEventArguments) -> None:
            nonlocal typed
            typed = str(event.args or "")

        tags.on("input-value", keep_typed)
        text = ui.textarea("Note", value=row.notes.note).props("outlined autogrow")
        place = ui.element("div")

        async def save() -> None:
            def write() -> None:
                write_tags(directory, [*(tags.value or []), typed])
                write_note(directory, text.value or "")

            await _try(write, place, dialog)

        _buttons(dialog, "Save", save)
    return bool(await dialog)


async def ask_to_delete(row: RunSummary) -> bool:
    """Ask whether to delete a run, and do it; return whether it was deleted."""
    studio = current()
    is_run = (studio.root / row.path).is_dir()
    with ui.dialog() as dialog, ui.element("div").classes("card dialog"):
        if is_run:
            Text("h2", f"Move {row.path} to the trash?")
            note("It can be restored from the trash of this folder until that is emptied.")
        else:
            Text("h2", f"Remove {row.path} from the queue?")
            note("Its recipe and its log are deleted.")
        place = ui.element("div")

        async def delete() -> None:
            def act() -> None:
                if is_run:
                    studio.trash.delete(row.path)
                elif row.job is not None:
                    studio.queue.cancel(row.job)

            await _try(act, place, dialog)

        _buttons(dialog, "Move to the trash" if is_run else "Remove", delete)
    return bool(await dialog)


async def show_trash() -> bool:
    """Show what is in the trash; return whether something was restored."""
    trash = current().trash
    with ui.dialog() as dialog, ui.element("div").classes("card dialog"):
        Text("h2", "Trash")
        found = await run.io_bound(trash.runs) or []
        place = ui.element("div")
        if not found:
            note("It is empty.")
        for one in found:
            _draw_trashed(one, place, dialog)
        with ui.element("div").classes("flex-row gap-2 dialog-buttons"):
            if found:

                async def empty() -> None:
                    await _try(trash.empty, place, dialog, answer=False)

                ui.button("Delete for good", on_click=empty, color="negative").props("flat no-caps")
            ui.button("Close", on_click=lambda: dialog.submit(False)).props("flat no-caps")
    return bool(await dialog)


def _draw_trashed(one: TrashedRun, place: ui.element, dialog: ui.dialog) -> None:
    async def restore() -> None:
        await _try(lambda: current().trash.restore(one.number), place, dialog)

    with ui.element("div").classes("flex-row gap-2 trashed"):
        Text("span", one.origin).classes("grow")
        Text("span", size_text(one.size_bytes)).classes("text-soft")
        ui.button("Restore", on_click=restore).props("flat dense no-caps")


def _buttons(dialog: ui.dialog, name: str, act: Callable[[], Any]) -> None:
    with ui.element("div").classes("flex-row gap-2 dialog-buttons"):
        ui.button("Cancel", on_click=lambda: dialog.submit(False)).props("flat no-caps")
        ui.button(name, on_click=act).props("unelevated no-caps")


async def _try(
    act: Callable[[], Any], place: ui.element, dialog: ui.dialog, *, answer: bool = True
) -> None:
    """Do something with files in a thread; show its error in the dialog, which stays open."""
    place.clear()
    try:
        await run.io_bound(act)
    except LorakitError as error:
        with place:
            problem(str(error))
        return
    dialog.submit(answer)
