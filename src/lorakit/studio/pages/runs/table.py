"""The table of runs: what a row shows, and which rows are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

from nicegui import ui

from lorakit.errors import escaped
from lorakit.quickstart.model_files import short_base_name
from lorakit.runs.index import RunSummary
from lorakit.runs.run_summary import STATES
from lorakit.studio.blocks import duration_text

_PER_PAGE = 50


@dataclass(frozen=True)
class Filter:
    """Which runs are shown.

    Attributes:
        words: Words that a run must have somewhere.
        state: State that it must have; empty for all.
    """

    words: str = ""
    state: str = ""

    states: ClassVar[tuple[str, ...]] = STATES

    def matching(self, rows: Iterable[RunSummary]) -> list[RunSummary]:
        """Return the runs to show, in their order."""
        words = self.words.casefold().split()
        return [
            row
            for row in rows
            if (not self.state or row.state == self.state)
            and all(word in _search_text(row) for word in words)
        ]

    def address(self) -> str:
        """Return the address of the page with this filter."""
        query = self.encode(q=self.words, state=self.state)
        return f"/?{query}" if query else "/"

    @staticmethod
    def encode(**values: str) -> str:
        """Return the part of an address after the question mark, without empty values."""
        return urlencode({name: value for name, value in values.items() if value}, safe="/,")


def _search_text(row: RunSummary) -> str:
    texts = (row.path, row.task, row.base, row.notes.note, *row.notes.tags)
    return "\n".join(text for text in texts if text).casefold()


def cells(row: RunSummary) -> dict[str, Any]:
    """Return what the table shows of a run; all texts are safe to show."""
    page = "run" if row.kind == "run" else "search"
    is_there = row.job is None or row.started_s > 0
    metric = "" if row.metric is None else row.metric.removeprefix("eval_").replace("_", " ")
    return {
        "path": row.path,
        "shown": escaped(row.path),
        "href": f"/{page}/{quote(row.path)}" if is_there else "",
        "kind": row.kind,
        "state": row.state,
        "problem": escaped(row.problem or "", keep="\n"),
        "task": escaped(row.task or ""),
        "base": escaped(short_base_name(row.base or "")),
        "metric": metric,
        "value": "" if row.value is None else f"{row.value:.4g}",
        "sorted_value": row.value,
        "started": _time_text(row.started_s),
        "started_s": row.started_s,
        "duration": "" if row.wall_s is None else duration_text(row.wall_s),
        "wall_s": row.wall_s,
        "speed": "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
        "tokens_per_s": row.tokens_per_s,
        "tags": "\n".join(escaped(tag) for tag in row.notes.tags),
        "note": escaped(row.notes.note, keep="\n"),
    }


def _time_text(seconds: float) -> str:
    try:
        then = datetime.fromtimestamp(seconds)
        is_this_year = then.year == datetime.now().year
        return then.strftime("%d %b %H:%M" if is_this_year else "%d %b %Y")
    except (OverflowError, OSError, ValueError):  # a time stamp that no calendar has
        return "?"


def _column(name: str, label: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "label": label, "field": name, "align": "left", **more}


_COLUMNS = [
    _column("shown", "Run", sortable=True),
    _column("state", "State", sortable=True),
    _column("task", "Task", sortable=True),
    _column("base", "Base", sortable=True),
    _column("sorted_value", "Metric", sortable=True, align="right"),
    _column("started_s", "Started", sortable=True),
    _column("wall_s", "Time", sortable=True, align="right"),
    _column("tokens_per_s", "Tokens/s", sortable=True, align="right"),
    _column("actions", "", align="right"),
]

# Vue shows what is in {{ }} as text; nothing here is HTML from a run.
_NAME = """
<a v-if="props.row.href" :href="props.row.href" class="run-name">{{ props.row.shown }}</a>
<span v-else class="run-name">{{ props.row.shown }}</span>
<span v-if="props.row.kind !== 'run'" class="badge">{{ props.row.kind }}</span>
<span v-for="tag in props.row.tags.split('\\n')" v-show="tag" class="badge tag">{{ tag }}</span>
<div v-if="props.row.note" class="text-soft text-sm run-note">{{ props.row.note }}</div>
<div v-if="props.row.problem" class="text-sm run-problem">{{ props.row.problem }}</div>
"""
_STATE = """<span :class="'badge badge-' + props.row.state">{{ props.row.state }}</span>"""
_METRIC = """
<span class="metric-name">{{ props.row.metric }}</span> {{ props.row.value }}
"""
_ACTIONS = """
<q-btn flat round dense icon="edit_note" @click="$parent.$emit('edit', props.row.path)"
  :aria-label="'Tags and note of ' + props.row.shown"><q-tooltip>Tags and note</q-tooltip></q-btn>
<q-btn flat round dense icon="delete_outline" @click="$parent.$emit('remove', props.row.path)"
  :aria-label="'Delete ' + props.row.shown"><q-tooltip>Delete</q-tooltip></q-btn>
"""
_SELECT = '<q-checkbox v-model="props.selected" :aria-label="{name}" />'
_CARD = f"""
<div class="run-card"><section class="card">
  <div class="flex-row gap-2 run-card-top">{_STATE}<span class="grow"></span>{_ACTIONS}</div>
  <div>{_NAME}</div>
  <dl>
    <template v-if="props.row.task"><dt>Task</dt><dd>{{{{ props.row.task }}}}</dd></template>
    <template v-if="props.row.base"><dt>Base</dt><dd>{{{{ props.row.base }}}}</dd></template>
    <template v-if="props.row.value"><dt>{{{{ props.row.metric }}}}</dt>
      <dd>{{{{ props.row.value }}}}</dd></template>
    <dt>Started</dt><dd>{{{{ props.row.started }}}}</dd>
    <template v-if="props.row.duration"><dt>Time</dt>
      <dd>{{{{ props.row.duration }}}}</dd></template>
    <template v-if="props.row.speed"><dt>Tokens/s</dt>
      <dd>{{{{ props.row.speed }}}}</dd></template>
  </dl>
</section></div>
"""


def draw_table(
    edit: Callable[[str], Any], delete: Callable[[str], Any], select: Callable[[], Any]
) -> ui.table:
    """Draw an empty table; on a narrow screen it is a column of cards.

    Args:
        edit: Called with the path of a run whose tags and note are to be edited.
        delete: Called with the path of a run that is to be deleted.
        select: Called when other runs are selected.
    """
    table = ui.table(
        rows=[],
        columns=_COLUMNS,
        row_key="path",
        selection="multiple",
        pagination={"rowsPerPage": _PER_PAGE},
        on_select=lambda: select(),
    )
    table.classes("runs").props('flat :grid="Quasar.Screen.lt.md" binary-state-sort')
    table.props(f':rows-per-page-options="[{_PER_PAGE}, 200, 0]"')
    for column, inner in (
        ("shown", _NAME),
        ("state", _STATE),
        ("sorted_value", _METRIC),
        ("started_s", "{{ props.row.started }}"),
        ("wall_s", "{{ props.row.duration }}"),
        ("tokens_per_s", "{{ props.row.speed }}"),
        ("actions", _ACTIONS),
    ):
        table.add_slot(f"body-cell-{column}", f'<q-td :props="props">{inner}</q-td>')
    table.add_slot("header-selection", _SELECT.format(name="'Select all runs'"))
    table.add_slot("body-selection", _SELECT.format(name="'Select ' + props.row.shown"))
    table.add_slot("item", _CARD)
    table.on("edit", lambda event: edit(event.args))
    table.on("remove", lambda event: delete(event.args))
    return table


def show_rows(table: ui.table, rows: Iterable[RunSummary]) -> None:
    """Show other runs in the table."""
    shown = [cells(row) for row in rows]
    if shown != table.rows:
        table.rows = shown
        table.props["hide-pagination"] = len(shown) <= _PER_PAGE
