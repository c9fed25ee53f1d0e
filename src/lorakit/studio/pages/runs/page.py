"""Runs: all runs of the folder, newest first, live."""

from __future__ import annotations

from nicegui import run, ui

from lorakit.runs.index import RunSummary
from lorakit.runs.paths import join_paths
from lorakit.studio.blocks import Text, empty, note
from lorakit.studio.context import current
from lorakit.studio.frame import page
from lorakit.studio.live import every
from lorakit.studio.pages.runs.dialogs import ask_to_delete, edit_notes, show_trash
from lorakit.studio.pages.runs.table import Filter, draw_table, show_rows

_PERIOD_S = 1.0


@page("/", "Runs")
async def runs(q: str = "", state: str = "") -> None:
    """List the runs.

    Args:
        q: Words that a run must have in its path, task, base, tags or note.
        state: State that it must have; empty for all.
    """
    view = _RunList(Filter(q, state))
    await view.refresh()
    every(_PERIOD_S, view.refresh)


class _RunList:
    """The list on one page; everything in it is read from the folder again."""

    def __init__(self, chosen: Filter):
        self._chosen = chosen
        self._rows: list[RunSummary] | None = None
        with ui.element("div").classes("flex-row toolbar"):
            search = ui.input("Filter", value=chosen.words, on_change=self._filter)
            search.props("dense outlined clearable debounce=200").classes("grow")
            states = ui.select(
                {"": "All states", **{name: name.capitalize() for name in Filter.states}},
                value=chosen.state if chosen.state in Filter.states else "",
                label="State",
                on_change=self._filter,
            )
            states.props("dense outlined").classes("state-select")
            self._inputs = (search, states)
            self._compare = ui.button("Compare", icon="stacked_line_chart", on_click=self._open)
            self._compare.props("outline no-caps disable")
            trash = ui.button(icon="delete_sweep", color=None, on_click=self._show_trash)
            trash.props('flat round aria-label="Trash"').tooltip("Trash")
        self._empty = ui.element("div")
        self._table = draw_table(self._edit, self._delete, self._select)
        self._cut = ui.element("div")
        self._count = Text("p", "").classes("note text-sm").props("role=status")

    async def refresh(self, *, fresh: bool = False) -> None:
        """Show the runs as they are now, if they have changed."""
        rows = await run.io_bound(lambda: current().runs(fresh=fresh))
        if rows is not None and rows != self._rows:
            self._rows = rows
            self._forget_removed()
            self._show()

    def _show(self) -> None:
        rows = self._rows or []
        shown = self._chosen.matching(rows)
        show_rows(self._table, shown)
        self._table.set_visibility(bool(shown))
        self._empty.clear()
        with self._empty:
            if not rows:
                empty(
                    "There is no run in this folder yet. Train one, and it appears here.",
                    "New run",
                    "/new",
                )
            elif not shown:
                empty("No run matches the filter.")
        self._cut.clear()
        if current().index.is_cut:
            with self._cut:
                note("This folder has too many directories; not all were looked into.")
        running = sum(row.state == "running" for row in rows)
        word = "run" if len(rows) == 1 else "runs"
        self._count.show(f"{len(shown)} of {len(rows)} {word}, {running} running" if rows else "")

    def _filter(self) -> None:
        search, states = self._inputs
        self._chosen = Filter(search.value or "", states.value or "")
        ui.navigate.history.replace(self._chosen.address())
        self._show()

    def _forget_removed(self) -> None:
        """Select runs no longer that are not there."""
        paths = {row.path for row in self._rows or []}
        left = [row for row in self._table.selected if row["path"] in paths]
        if len(left) != len(self._table.selected):
            self._table.selected = left
            self._select()

    def _select(self) -> None:
        count = len(self._table.selected)
        self._compare.set_text(f"Compare {count}" if count else "Compare")
        self._compare.set_enabled(count > 1)

    def _open(self) -> None:
        paths = join_paths(row["path"] for row in self._table.selected)
        ui.navigate.to(f"/compare?{Filter.encode(runs=paths)}")

    def _row(self, path: str) -> RunSummary | None:
        return next((row for row in self._rows or [] if row.path == path), None)

    async def _edit(self, path: str) -> None:
        row = self._row(path)
        if row is not None and await edit_notes(row):
            await self.refresh(fresh=True)

    async def _delete(self, path: str) -> None:
        row = self._row(path)
        if row is not None and await ask_to_delete(row):
            await self.refresh(fresh=True)

    async def _show_trash(self) -> None:
        if await show_trash():
            await self.refresh(fresh=True)
