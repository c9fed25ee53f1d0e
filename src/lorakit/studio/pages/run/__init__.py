"""Run: one run while it trains and after it, from the files of its directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nicegui import run as in_thread
from nicegui import ui

from lorakit.errors import escaped
from lorakit.runs.metric_log import MetricLog
from lorakit.runs.predictions import read_predictions
from lorakit.runs.run_detail import RunDetail, read_detail
from lorakit.runs.run_files import LogTail
from lorakit.studio.blocks import Text, problem
from lorakit.studio.context import current
from lorakit.studio.frame import page, set_title
from lorakit.studio.pages.run.curves import Curves
from lorakit.studio.pages.run.downloads import show_files
from lorakit.studio.pages.run.progress import Progress
from lorakit.studio.pages.run.results import show_picture, show_predictions, show_report

_POLL_S = 0.5


@page("/run/{path:path}", "Run")
async def run(path: str) -> None:
    """Show a run below the folder of runs."""
    directory = current().path(path)
    set_title(path)
    view = _RunView(path, await in_thread.io_bound(lambda: read_detail(directory)))
    await view.read_and_show()
    ui.timer(_POLL_S, view.follow, immediate=False)


class _RunView:
    """The parts of the page, and what of the run they show."""

    def __init__(self, path: str, detail: RunDetail):
        self._detail = detail
        self._log = MetricLog(detail.path / "metrics.jsonl")
        self._output = LogTail(detail.path / "log.txt")
        self._stamp: tuple[object, ...] = ()
        self._problems = ui.element("div").classes("flex-col gap-2")
        self._progress = Progress(path, detail)
        self._curves = Curves()
        self._results = ui.element("div").classes("flex-col gap-4")
        with _section("Log") as self._log_section:
            self._log_text = Text("pre", "").classes("log").props("tabindex=0")
        with _section("Files"):
            self._files = ui.element("div")
        with _section("Recipe"), ui.element("div").classes("scroll"):
            Text("pre", _recipe_text(detail), keep="\n").classes("mono")

    async def follow(self) -> None:
        """Show what is new, if somebody looks."""
        if ui.context.client.has_socket_connection:
            await self.read_and_show()

    async def read_and_show(self) -> None:
        """Read what is new in the run's files, in a thread, and show it."""
        has_changed, output = await in_thread.io_bound(
            lambda: (self._log.read(), self._output.read())
        )
        self._progress.update(self._log)
        if has_changed:
            self._curves.update(self._log, self._detail.planned_bytes)
        if output is not None:
            self._log_text.set_text(escaped(output, keep="\n"))
        self._log_section.set_visibility(bool(self._log_text.text))
        self._show_results()

    def _show_results(self) -> None:
        """Draw report, predictions and files again if one of them has appeared or changed."""
        path = self._detail.path
        watched = (path, path / "report.md", path / "predictions.jsonl", path / "confusion.png")
        stamp = (*map(_changed_at, watched), self._log.problem is not None)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._problems.clear()
        with self._problems:
            found = [*self._detail.problems, *([self._log.problem] if self._log.problem else [])]
            for sentence in found:
                problem(sentence)
        self._results.clear()
        with self._results:
            self._show_report()
            self._show_examples()
        self._files.clear()
        with self._files:
            show_files(path)

    def _show_report(self) -> None:
        path = self._detail.path / "report.md"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            problem(f"Cannot read {path}: {error}. Resume the run, which writes it again.")
            return
        with _section("Report", is_open=True):
            show_report(text)

    def _show_examples(self) -> None:
        found = read_predictions(self._detail.path / "predictions.jsonl")
        picture = self._detail.path / "confusion.png"
        if found is None and not picture.is_file():
            return
        with _section("Validation examples", is_open=True):
            if found is not None:
                show_predictions(found)
            if found is None or not found.classes():
                show_picture(picture, "Confusion matrix of the validation examples")


@contextmanager
def _section(title: str, *, is_open: bool = False) -> Iterator[ui.element]:
    """Group what can be folded; the browser's own element, which the keyboard opens, too."""
    with ui.element("details").classes("card fold") as section:
        if is_open:
            section.props("open")
        with ui.element("summary"):
            Text("h2", title)
        yield section


def _changed_at(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _recipe_text(detail: RunDetail) -> str:
    try:
        return (detail.path / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
