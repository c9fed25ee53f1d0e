"""Show the trials of a search or a study: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorakit.analysis.metric_text import metric_name
from lorakit.cli.views.console import console, heading, number_text, pairs, say, table
from lorakit.errors import escaped

if TYPE_CHECKING:
    from lorakit.recipes.search_sections import TrialsConfig
    from lorakit.tuning.records import TrialRecord

_STYLES = {"running": "bold", "finished": "green", "stopped": "yellow", "failed": "red"}
_LINES_AROUND = 6
"""Lines of a terminal that are kept for what is above and below the table."""


class TrialsView:
    """Shows each event of a search or a study."""

    def __init__(self) -> None:
        self._console = console()
        self._live: Live | None = None
        self._settings: TrialsConfig | None = None
        self._epochs = 0
        self._shown_states: dict[str, tuple[str, int]] = {}
        self.is_open = False

    def __enter__(self) -> TrialsView:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the live table, so that other lines can be printed."""
        if self._live is not None:
            self._live.stop()
        self._live = None

    def __call__(self, event: str, payload: dict[str, Any]) -> None:
        """Show one event."""
        if event == "dtype":
            say(payload["note"])
        elif event == "planned":
            self.is_open = True
            self._settings, self._epochs = payload["settings"], payload["epochs"]
            self._show_plan(payload)
        elif event == "together":
            say(f"Trials: {payload['note']}.")
        elif event == "trials":
            self._show_trials(payload["records"], payload["changed"])

    def _show_plan(self, payload: dict[str, Any]) -> None:
        settings = payload["settings"]
        aim = "lowest" if settings.is_minimized else "highest"
        heading(f"{payload['trials']} trials of up to {payload['epochs']} epochs")
        pairs(
            {
                "training examples": number_text(payload["train_examples"]),
                "objective": f"the {aim} {settings.metric}",
                **payload["facts"],
            }
        )
        space = payload["space"]
        table(
            ("field", "values"),
            [(key, values_text(space.distributions[key])) for key in space.keys],
        )

    def _show_trials(self, records: Sequence[TrialRecord], changed: TrialRecord) -> None:
        if self._settings is None:
            return
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=2)
                self._live.start()
            room = max(5, self._console.height - _LINES_AROUND)
            self._live.update(self._table(select_records(records, room), len(records)))
            return
        state = (changed.status, changed.epochs)
        if self._shown_states.get(changed.name) != state:
            self._shown_states[changed.name] = state
            line = trial_line(changed, self._settings, self._epochs)
            self._console.print(escaped(line), soft_wrap=True)

    def _table(self, records: Sequence[TrialRecord], count: int) -> Table:
        settings = self._settings
        metric = metric_name(settings.metric) if settings else ""
        grid = Table(box=None, pad_edge=False, header_style="bold")
        keys = list(records[0].values) if records else []
        short = [key.rpartition(".")[2] for key in keys]
        for name in ("trial", "status", "epoch", f"best {metric}", *short):
            grid.add_column(name, overflow="ellipsis", no_wrap=True)
        for record in records:
            best = record.best_value(settings) if settings else None
            cells = [
                record.name,
                record.status,
                f"{record.epochs}/{self._epochs}",
                "" if best is None else number_text(best),
                *(value_text(record.values[key]) for key in keys),
            ]
            style = _STYLES.get(record.status, "dim")
            grid.add_row(*(Text(escaped(cell)) for cell in cells), style=style)
        if len(records) < count:
            grid.caption = f"{count - len(records)} more trials have ended"
        return grid


def select_records(records: Sequence[TrialRecord], most: int) -> list[TrialRecord]:
    """Return the records that fit the screen: running and waiting ones, then the newest."""
    if len(records) <= most:
        return list(records)
    ended = [r for r in records if r.status not in ("running", "waiting")]
    left_out = {record.name for record in ended[: len(records) - most]}
    return [record for record in records if record.name not in left_out][-most:]


def trial_line(record: TrialRecord, settings: TrialsConfig, epochs: int) -> str:
    """Return one line on the last change of a trial."""
    if record.status == "failed":
        return f"{record.name} failed: {record.error}"
    best = record.best_value(settings)
    if record.status == "running" and best is None:
        values = ", ".join(
            f"{key.rpartition('.')[2]}={value_text(value)}" for key, value in record.values.items()
        )
        return f"{record.name} starts: {values}"
    last = record.evaluations[-1][settings.metric] if record.evaluations else math.nan
    text = f"{record.name} epoch {record.epochs}/{epochs}"
    text += f": {metric_name(settings.metric)} {number_text(last)}"
    return text if record.status == "running" else f"{text}, {record.status}"


def value_text(value: Any) -> str:
    """Return a value of a trial for a table."""
    from lorakit.tuning.space import label_of

    label = label_of(value)
    return f"{label:.3g}" if isinstance(label, float) else str(label)


def values_text(distribution: Any) -> str:
    """Return the distribution of a field in words."""
    from lorakit.tuning.space import label_of

    if distribution.same_as is not None:
        times = "" if distribution.times == 1 else f"{distribution.times:g} times "
        return f"{times}{distribution.same_as}"
    if distribution.choice is not None:
        return " | ".join(str(label_of(value)) for value in distribution.choice)
    low, high = distribution.bounds
    scale = " (log scale)" if distribution.log_uniform else ""
    points = f", {distribution.points} points" if distribution.points else ""
    return f"{low:g} ... {high:g}{scale}{points}"
