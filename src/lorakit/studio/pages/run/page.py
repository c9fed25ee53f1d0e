"""Run: one run while it trains and after it, from the files of its directory."""

from __future__ import annotations

import asyncio
import time
from pathlib import PurePosixPath

from nicegui import ui
from nicegui.events import GenericEventArguments

from lorakit.errors import MissingFileError, escaped
from lorakit.runs.jobs import JobFolder
from lorakit.runs.predictions import read_predictions
from lorakit.runs.watch import RunWatch
from lorakit.studio.blocks import Text, fold, problem
from lorakit.studio.context import current
from lorakit.studio.frame import page, set_title
from lorakit.studio.live import every
from lorakit.studio.pages.run.blame import BlamePart
from lorakit.studio.pages.run.curves import Curves
from lorakit.studio.pages.run.downloads import show_files
from lorakit.studio.pages.run.progress import Progress
from lorakit.studio.pages.run.results import show_picture, show_predictions, show_report

_POLL_S = 0.85
"""Each look that finds something is drawn, which takes time from the run; a point is to be on the
screen of somebody who uses the page within a second."""

_ALL_EVERY_S = 2.5
"""Between two changes of the words, for which a browser lays out the page again, and of the curves
below the loss: each picture that changes takes time from the run."""

_ANSWERS = {
    "TOKEN_CLS": "data.tags",
    "CAUSAL_LM": "data.completion",
    "SEQ_2_SEQ_LM": "data.target",
}
"""Recipe field that names the column of the expected answers, by task; else "data.label"."""


@page("/run/{path:path}", "Run")
async def run(path: str) -> None:
    """Show a run below the folder of runs."""
    path = str(PurePosixPath(path))
    root = current().root
    try:
        current().path(path)
    except MissingFileError:
        if JobFolder(root).of(path) is None:  # else it waits in the queue
            raise
    set_title(path)
    view = _RunView(await asyncio.to_thread(lambda: RunWatch(current().index, path)))
    await view.look()
    every(_POLL_S, view.look)


class _RunView:
    """The parts of the page, and the run that they show."""

    def __init__(self, watch: RunWatch):
        self._watch = watch
        self._found: tuple[str, ...] = ()
        self._is_behind, self._all_shown_s = False, 0.0
        self._problems = ui.element("div").classes("flex-col gap-2")
        self._progress = Progress(watch)
        self._curves = Curves()
        self._results = ui.element("div").classes("flex-col gap-4")
        self._blame = BlamePart(watch)
        self._output, self._shows_log, self._shows_files = "", False, False
        with fold("Log") as log:
            log.on("toggle", self._open_log, js_handler="(event) => emit(event.target.open)")
            self._no_log = Text(
                "p",
                "This run was not started here: what it prints is in its terminal alone. These are "
                "the last lines of its metrics.jsonl.",
            ).classes("note")
            with ui.element("div").classes("log").props("tabindex=0"):
                self._log = Text("pre", "")
        with fold("Files") as files:
            files.on("toggle", self._open_files, js_handler="(event) => emit(event.target.open)")
            self._files = ui.element("div")
        with fold("Recipe"), ui.element("div").classes("scroll"):
            self._recipe = Text("pre", "").classes("mono")

    async def look(self) -> None:
        """Read what is new in the run's files, in a thread, and show it."""
        reads_log = self._shows_log or not self._output
        seen = await asyncio.to_thread(self._watch.look, with_output=reads_log)
        if seen.has_files or seen.has_state:
            self._progress.show_state()
            self._blame.update()
        self._is_behind |= seen.has_metrics
        is_due = time.monotonic() - self._all_shown_s >= _ALL_EVERY_S
        shows_all = seen.has_files or seen.has_state or (self._is_behind and is_due)
        if self._is_behind:
            planned_bytes = self._watch.detail.planned_bytes
            self._curves.update(self._watch.log, planned_bytes, only_main=not shows_all)
        if shows_all:
            self._is_behind, self._all_shown_s = False, time.monotonic()
            self._progress.update()
            self._show_problems()
        if seen.has_files:
            self._show_results()
        if seen.has_entries and self._shows_files:
            self._show_files()
        if seen.output is not None:
            self._output = seen.output
            self._show_log()
        self._no_log.set_visibility(self._watch.job is None)

    def _open_log(self, event: GenericEventArguments) -> None:
        """Let the next looks read the log; a folded one stays as it was."""
        self._shows_log = bool(event.args)

    def _open_files(self, event: GenericEventArguments) -> None:
        """List the files as they are now; each checkpoint would draw a list that nobody sees."""
        self._shows_files = bool(event.args)
        if self._shows_files:
            self._show_files()

    def _show_files(self) -> None:
        self._files.clear()
        with self._files:
            show_files(self._watch.directory)

    def _show_log(self) -> None:
        self._log.set_text(escaped(self._output, keep="\n"))

    def _show_problems(self) -> None:
        watch = self._watch
        of_files = (*watch.detail.problems, watch.log.problem)
        found = tuple(sentence for sentence in of_files if sentence)
        if not found and watch.state == "damaged" and watch.problem is not None:
            found = (watch.problem,)
        if found == self._found:
            return
        self._found = found
        self._problems.clear()
        with self._problems:
            for sentence in found:
                problem(sentence)

    def _show_results(self) -> None:
        """Draw report, predictions and recipe again."""
        self._results.clear()
        with self._results:
            self._show_examples()
            self._show_report()
        self._recipe.set_text(escaped(self._watch.detail.recipe_text, keep="\n"))

    def _show_report(self) -> None:
        path = self._watch.directory / "report.md"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            problem(f"Cannot read {path}: {error}. Resume the run, which writes it again.")
            return
        with fold("Report", is_open=True):
            show_report(text)

    def _show_examples(self) -> None:
        detail = self._watch.detail
        expected = _ANSWERS.get(detail.text("task"), "data.label")
        path = self._watch.directory / "predictions.jsonl"
        found = read_predictions(path, detail.text(expected))
        picture = self._watch.directory / "confusion.png"
        if found is None and not picture.is_file():
            return
        with fold("Validation examples", is_open=True):
            if found is not None:
                show_predictions(found)
            if found is None or not found.classes():
                show_picture(picture, "Confusion matrix of the validation examples")
