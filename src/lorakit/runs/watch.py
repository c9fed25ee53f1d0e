"""Watching one run of a folder: its state, its metrics and what it prints."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.errors import MissingFileError
from lorakit.recipes.directory_lock import has_ended, lock_holder
from lorakit.runs.index import RunIndex
from lorakit.runs.jobs import Job, JobFolder
from lorakit.runs.metric_log import MetricLog
from lorakit.runs.run_detail import RunDetail, read_detail
from lorakit.runs.run_files import LogTail
from lorakit.runs.run_summary import State, file_stamp, read_facts, state_of

_WATCHED = (
    *("recipe.yaml", "environment.json", "report.md", "verdict.json", "predictions.jsonl"),
    *("confusion.png", "adapter"),
)
"""Files of a run, beside its metrics, that change what is known about it."""
_DECIDING = ("recipe.yaml", "environment.json", "report.md", "failure.json", "adapter")
_METRICS_BYTES = 6_000
"""The end of metrics.jsonl that is shown of a run whose output is in a terminal."""


@dataclass(frozen=True)
class Seen:
    """What is new of a run."""

    has_metrics: bool
    has_state: bool
    has_files: bool
    """Whether a file beside the metrics that says something about it came, went or changed."""
    has_entries: bool
    """Whether anything in its directory came or went, as with each checkpoint."""
    output: str | None
    """The end of what it has printed, or None if that has not changed; the end of metrics.jsonl if
    it prints to a terminal."""


class RunWatch:
    """One run, looked at again and again; a look that finds nothing new costs a few system calls.

    Attributes:
        root: Folder of runs.
        directory: Directory of the run.
        path: Path of the run below the folder of runs.
        log: Its metrics.
        detail: Its recipe, its plan, and what is damaged.
        state: What it is doing.
        problem: Why it has failed, or None.
        job: The queue's job that writes it; None if it was started in another way.
    """

    def __init__(self, index: RunIndex, path: str):
        """Watch a run, or one that waits in the queue and has no directory yet.

        Args:
            index: The runs of the folder.
            path: Path below the folder, which has been checked.

        Raises:
            MissingFileError: There is no such run.
        """
        self.root, self.path, self.directory = index.root, path, index.root / path
        self.log = MetricLog(self.directory / "metrics.jsonl")
        self.state: State = "interrupted"
        self.problem: str | None = None
        self._index, self._jobs = index, JobFolder(index.root)
        self._output: LogTail | None = None
        self._stamp: tuple[object, ...] = ()
        self._entries: tuple[int, int, int] | None = None
        self._state_signs: tuple[object, ...] = ()
        self.job: Job | None = self._jobs.of(path)
        self.detail = self._read_detail()

    @property
    def is_active(self) -> bool:
        """Whether something is going to change soon."""
        return self.state in ("queued", "running")

    def look(self, *, with_output: bool = True) -> Seen:
        """Read what is new.

        Args:
            with_output: Whether to read what the run prints; what is left out is read later.
        """
        has_state = self._look_at_state()
        has_metrics = self.log.read()
        stamp = tuple(file_stamp(self.directory / name) for name in _WATCHED)
        has_files = stamp != self._stamp
        if has_files:
            self._stamp = stamp
            self.detail = self._read_detail()
        entries = file_stamp(self.directory)
        has_entries, self._entries = entries != self._entries, entries
        output = self._output.read() if with_output and self._output is not None else None
        return Seen(has_metrics, has_state, has_files, has_entries or has_files, output)

    def _look_at_state(self) -> bool:
        self.job = self._jobs.of(self.path)
        signs = self._signs()
        if signs == self._state_signs:  # reading the whole run again would take 50 ms
            return False
        self._state_signs = signs
        row = self._index.summary(self.path)
        if row is not None:
            self.state, self.problem = row.state, row.problem
        elif self.directory.is_dir():  # a trial of a search
            self.state, self.problem = state_of(self.directory, read_facts(self.directory))
        if self.job is None:
            if self._output is None:
                self._output = LogTail(self.directory / "metrics.jsonl", _METRICS_BYTES)
        elif self._output is None or self._output.path != self.job.log_file:
            self._output = LogTail(self.job.log_file)
        return True

    def _signs(self) -> tuple[object, ...]:
        """Return what the state follows from: lock, process, job, and the files of an end."""
        holder = lock_holder(self.directory)
        return (
            str(holder),
            bool(holder) and has_ended(holder),
            self.job and (self.job.number, self.job.state, self.job.exit_code),
            *(file_stamp(self.directory / name) for name in _DECIDING),
        )

    def _read_detail(self) -> RunDetail:
        try:
            return read_detail(self.directory)
        except MissingFileError:
            if self.job is None:
                raise
            return RunDetail(self.directory, self.job.about, None, ())
