"""Show the progress of training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lorakit.analysis.metric_text import metric_name
from lorakit.cli.views.console import console, duration_text, number_text
from lorakit.errors import escaped

if TYPE_CHECKING:
    from lorakit.config import TaskType

WIDTH_BESIDE_BAR = 52  # columns: counts, loss, learning rate and time left
MAX_BAR_WIDTH = 40
MIN_BAR_WIDTH = 5
SECONDS_BETWEEN_LINES = 10.0
SHOWN_METRICS = 5  # in one line; all of them are in metrics.jsonl


class TrainingProgress:
    """Shows the "step" and "evaluation" events of a run."""

    def __init__(self) -> None:
        self._console: Console = console()
        self._bar: Progress | None = None
        self._task: Any = None
        self._began_s = 0.0
        self._first_step = 0
        self._name: Callable[[str], str] = metric_name

    def stop(self) -> None:
        """End the bar, so that other lines can be printed."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._began_s = None, 0.0

    def name_metrics(self, task_type: TaskType, labels: Sequence[str] | None) -> None:
        """Name the metrics of a task as its report does."""
        from lorakit.adapters.inference_settings import InferenceSettings
        from lorakit.analysis.metric_text import metric_text

        settings = InferenceSettings(task_type=task_type, labels=tuple(labels or ()))
        self._name = lambda key: metric_text(key, settings)

    def step(self, payload: Mapping[str, Any]) -> None:
        """Show the progress of training.

        Args:
            payload: "step", "max_steps", "epoch", "loss", "learning_rate", and "logged", which
                is true if the values are new.
        """
        if not self._began_s:
            self._began_s, self._first_step = time.monotonic(), int(payload["step"])
        if self._console.is_terminal:
            bar = self._bar or self._start(payload)
            bar.update(
                self._task,
                completed=payload["step"],
                loss=_value("loss", payload["loss"]),
                rate=_value("lr", payload["learning_rate"]),
            )
        elif payload["logged"]:
            self._line(f"{step_text(payload)}{self._time_left(payload)}")

    def evaluation(self, payload: Mapping[str, Any]) -> None:
        """Show the first metrics of an evaluation.

        Args:
            payload: "step", "epoch" and "metrics".
        """
        epoch = payload.get("epoch") or 0
        first = dict(islice(payload["metrics"].items(), SHOWN_METRICS))
        more = ", ..." if len(first) < len(payload["metrics"]) else ""
        values = ", ".join(
            f"{self._name(key)} {number_text(value)}" for key, value in first.items()
        )
        self._line(f"after epoch {epoch:.4g}: {values}{more}")

    def _start(self, payload: Mapping[str, Any]) -> Progress:
        width = min(MAX_BAR_WIDTH, max(MIN_BAR_WIDTH, self._console.width - WIDTH_BESIDE_BAR))
        self._bar = Progress(
            BarColumn(bar_width=width),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=payload["max_steps"], loss="", rate="")
        self._bar.start()
        return self._bar

    def _time_left(self, payload: Mapping[str, Any]) -> str:
        done = payload["step"] - self._first_step
        if done <= 0 or payload["step"] >= payload["max_steps"]:
            return ""
        per_step_s = (time.monotonic() - self._began_s) / done
        return f"  left {duration_text(per_step_s * (payload['max_steps'] - payload['step']))}"

    def _line(self, text: str) -> None:
        self._console.print(escaped(text), soft_wrap=True)


def step_text(payload: Mapping[str, Any]) -> str:
    """Return a logged step in words."""
    return (
        f"step {payload['step']}/{payload['max_steps']}  epoch {payload['epoch']:.2f}  "
        f"{_value('loss', payload['loss'])}  {_value('lr', payload['learning_rate'])}"
    )


def _value(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.1e}"


@contextmanager
def counting(noun: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows (done, all) on stderr: a bar, or a line now and then."""
    screen = console(stderr=True)
    if screen.is_terminal:
        with Progress(
            BarColumn(bar_width=MAX_BAR_WIDTH),
            MofNCompleteColumn(),
            TextColumn(noun),
            TimeRemainingColumn(),
            console=screen,
        ) as bar:
            task = bar.add_task("")
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    shown_s = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown_s
        if time.monotonic() - shown_s >= SECONDS_BETWEEN_LINES:
            shown_s = time.monotonic()
            screen.print(f"{done:,} of {total:,} {noun}", soft_wrap=True)

    yield show


@contextmanager
def showing_data_progress() -> Iterator[None]:
    """Show on stderr how far large data has been read and tokenized, inside the block."""
    from lorakit.data.progress import Progress as DataProgress
    from lorakit.data.progress import reporting_progress

    with ExitStack() as shown:
        current: tuple[str, Callable[[int, int], None]] | None = None

        def show(progress: DataProgress) -> None:
            nonlocal current
            if current is None or current[0] != progress.what:
                shown.close()
                noun = f"{progress.unit} ({escaped(progress.what)})"
                current = (progress.what, shown.enter_context(counting(noun)))
            current[1](progress.done, progress.total)
            if progress.done >= progress.total:
                shown.close()
                current = None

        with reporting_progress(show):
            yield
