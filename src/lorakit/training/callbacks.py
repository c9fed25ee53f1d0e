"""Callbacks that record a run: metrics.jsonl, TensorBoard and the caller's events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from lorakit.files.disks import reporting_disk_errors
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.evaluation_metrics import TOKENS_PER_S, is_speed

EventHandler = Callable[[str, dict[str, Any]], None]
"""Receives an event's name and payload; see `lorakit.training.run.train`."""


def ignore_event(name: str, payload: dict[str, Any]) -> None:
    """Ignore an event."""


class RunRecorder(TrainerCallback):
    """Appends logged values to metrics.jsonl, and emits events about the progress."""

    def __init__(self, run: RunDirectory, emit: EventHandler):
        self._run = run
        self._emit = emit
        self.measure: Callable[[], Mapping[str, float]] = dict
        """Returns what else to log after optimizer steps, such as the speed."""
        self._latest: dict[str, Any] = {"loss": None, "learning_rate": None}
        entries = run.metrics()
        self._wall_s_before = entries[-1].get("wall_s", 0.0) if entries else 0.0
        self._started_s = time.perf_counter()

    @property
    def wall_s(self) -> float:
        """Seconds spent on the run, including those before a resume."""
        return self._wall_s_before + time.perf_counter() - self._started_s

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started_s = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Emit that an optimizer step is complete."""
        self._emit("step", self._progress(state, logged=False))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append the logged values and emit them."""
        values = {
            key: value
            for key, value in (logs or {}).items()
            if key == TOKENS_PER_S or not is_speed(key)
        }
        values.pop("epoch", None)
        kind = event_of(values)
        if kind == "step":
            values |= self.measure()
        entry = {
            "event": kind,
            "step": state.global_step,
            "epoch": state.epoch,
            **values,
            "wall_s": round(self.wall_s, 3),
        }
        self._run.append_metrics(entry)
        if kind == "evaluation":
            self._emit("evaluation", {**self._progress(state, logged=True), "metrics": values})
        elif kind == "step":
            self._latest = {key: values.get(key) for key in self._latest}
            self._emit("step", self._progress(state, logged=True))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Emit that a checkpoint is complete."""
        path = self._run.path / f"checkpoint-{state.global_step}"
        self._emit("checkpoint", {"step": state.global_step, "path": str(path)})

    def _progress(self, state: TrainerState, *, logged: bool) -> dict[str, Any]:
        return {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "epoch": state.epoch,
            "logged": logged,
            **self._latest,
        }


class RunTensorBoard(TensorBoardCallback):
    """Writes TensorBoard's events into the run directory; a resumed run purges repeated steps."""

    def __init__(self, run: RunDirectory):
        super().__init__()
        self.logging_dir = str(run.tensorboard)
        self._directory = run.tensorboard

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the event file, and purge events after the step resumed from."""
        from torch.utils.tensorboard import SummaryWriter

        purge = state.global_step + 1 if state.global_step else None
        with self._explaining_disk_errors():
            self.tb_writer = SummaryWriter(log_dir=self.logging_dir, purge_step=purge)
            super().on_train_begin(args, state, control, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Write what was logged."""
        with self._explaining_disk_errors():
            super().on_log(*args, **kwargs)

    def close(self) -> None:
        """Close the event file, if one is open, even if training failed."""
        writer, self.tb_writer = self.tb_writer, None
        if writer is not None:
            with self._explaining_disk_errors():
                writer.close()

    def _explaining_disk_errors(self) -> AbstractContextManager[None]:
        return reporting_disk_errors(self._directory, "TensorBoard's events")


@contextmanager
def silencing_writer_threads() -> Iterator[None]:
    """Keep TensorBoard's threads from printing their errors inside the block.

    They pass each error to the thread that writes or closes next.
    """
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            before(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def early_stopping(training: dict[str, Any]) -> list[TrainerCallback]:
    """Return transformers' early stopping callback if the training arguments ask for it."""
    patience = training.get("early_stopping_patience")
    if patience is None:
        return []
    return [EarlyStoppingCallback(patience, training.get("early_stopping_threshold", 0.0))]


def event_of(values: Mapping[str, Any]) -> str:
    """Return the event of values that a trainer logs, as metrics.jsonl names it."""
    if "train_loss" in values:
        return "summary"
    return "evaluation" if any(key.startswith("eval_") for key in values) else "step"
