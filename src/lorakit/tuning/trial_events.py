"""Follow the trials of a search that Ray Tune runs: a record of each, and why it failed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune

from lorakit.errors import LorakitError
from lorakit.recipes.run_directory import RunDirectory
from lorakit.tuning.records import Status, TrialRecord, evaluations_of
from lorakit.tuning.trial import MetricError, TrialPlan

OnChange = Callable[[list[TrialRecord], TrialRecord], None]


class ReportingError(BaseException):
    """A change of a trial could not be reported, for example because the disk is full.

    It ends the search as Ctrl-C does: an `Exception` would be taken for the trial's failure by Ray.
    """


class TrialListener(tune.Callback):
    """Keeps a record of every trial, and detects that no trial reports the metric."""

    def __init__(self, plan: TrialPlan, on_change: OnChange):
        """Create it without records.

        Args:
            plan: Plan that all trials share.
            on_change: Called with all records and the one that changed.
        """
        self._plan = plan
        self._on_change = on_change
        self._records: dict[str, TrialRecord] = {}
        self.metric_error: MetricError | None = None

    def records(self) -> list[TrialRecord]:
        """Return the records in the order of trial numbers."""
        names = sorted(self._records, key=lambda name: (len(name), name))  # 1000 is after 999
        return [self._records[name] for name in names]

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Record trials that are new: just sampled, or from before a restart."""
        for trial in trials:
            name = str(trial)
            if name not in self._records:
                known: dict[str, Status] = {"TERMINATED": self._ending_of(trial), "ERROR": "failed"}
                self._records[name] = self._record(trial, known.get(trial.status, "waiting"))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a trial runs."""
        self.on_step_begin(iteration, trials)
        self._change(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Report an evaluation."""
        self._change(trial, "running")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a trial has finished, or was stopped because others were better."""
        self._change(trial, self._ending_of(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a trial has failed."""
        self._change(trial, "failed")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Record trials that had already ended when the search was resumed."""
        self.on_step_begin(0, trials)

    def _change(self, trial: Any, status: Status) -> None:
        """Record a new status of a trial and report it.

        Raises:
            ReportingError: Its cause is what `on_change` raised.
        """
        record = self._record(trial, status)
        self._records[record.name] = record
        try:
            self._on_change(self.records(), record)
        except Exception as error:
            raise ReportingError from error

    def _ending_of(self, trial: Any) -> Status:
        run = RunDirectory(self._plan.trials_path / str(trial))
        return "finished" if run.is_finished else "stopped"

    def _record(self, trial: Any, status: Status) -> TrialRecord:
        run = RunDirectory(self._plan.trials_path / str(trial))
        error = None
        if status == "failed":
            cause = cause_of(trial)
            error = failure_text(cause)
            if isinstance(cause, MetricError):
                self.metric_error = cause
        return TrialRecord(
            str(trial),
            status,
            self._plan.space.trial_values(trial.config),
            evaluations_of(run),
            run.path,
            error,
        )


_listeners: list[TrialListener] = []
"""Listeners of the searches that run."""


@contextmanager
def listening(plan: TrialPlan, on_change: OnChange) -> Iterator[TrialListener]:
    """Yield a listener for a search in this block, which `StopUseless` asks.

    Args:
        plan: Plan that all trials share.
        on_change: Called with all records and the one that changed.
    """
    listener = TrialListener(plan, on_change)
    _listeners.append(listener)
    try:
        yield listener
    finally:
        _listeners.remove(listener)


class StopUseless(tune.Stopper):
    """Stops the search when no trial reports the metric.

    Ray's record has the stopper, and a resumed search takes that one: so it has no state.
    """

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether the search is useless."""
        return any(listener.metric_error is not None for listener in _listeners)


def cause_of(trial: Any) -> BaseException | None:
    """Return the error that the process of a trial raised, without the wrappers of Ray."""
    staged = trial.pickled_error_file  # not in Ray's storage yet when the trial fails
    if staged is not None and Path(staged).is_file():
        error: Any = pickle.loads(Path(staged).read_bytes())
    else:
        error = trial.get_pickled_error()
    # Ray's error is also an instance of the class of its cause, with a traceback as message.
    while getattr(error, "cause", None) is not None:
        error = error.cause
    link = error
    while link is not None and not isinstance(link, LorakitError):
        link = link.__cause__
    return link or error


def failure_text(cause: BaseException | None) -> str:
    """Return the reason of a failed trial in one line."""
    if isinstance(cause, LorakitError):
        return " ".join(str(cause).split())
    name = type(cause).__name__
    if name in ("ActorDiedError", "RayActorError", "ActorUnavailableError", "OutOfMemoryError"):
        return (
            "Its process was killed; memory may have run out. Run fewer concurrent trials "
            "(max_concurrent, together), or set training.activation_checkpointing=true."
        )
    lines = str(cause).strip().splitlines() or [name]
    return " ".join(f"{name}: {lines[-1]}".split())
