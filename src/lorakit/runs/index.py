"""All runs below a folder, and what each is doing now."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.errors import escaped
from lorakit.runs.jobs import Job, JobFolder
from lorakit.runs.paths import is_utf8, resolve
from lorakit.runs.run_summary import (
    RunFacts,
    RunSummary,
    is_run,
    read_facts,
    signature,
    state_of,
)

__all__ = ["RunIndex", "RunSummary", "resolve"]

_DEEPEST = 6
MOST_DIRECTORIES = 20_000
"""Directories to look into; a home directory may have millions."""
_SETTLED_S = 2.0
"""Within this time a directory may change again without another time stamp."""
_CLOSED = ("trials", "tensorboard", "adapter")
"""Directories of searches and runs whose contents are not runs of the list."""


@dataclass(frozen=True)
class _Listing:
    changed_ns: int
    names: frozenset[str]
    folders: tuple[str, ...]


class RunIndex:
    """The runs of a folder; reading them again costs little where nothing has changed.

    Attributes:
        root: The folder.
        is_cut: Whether there are more directories than are looked into.
    """

    def __init__(self, root: Path):
        """Create an index that has not looked yet."""
        self.root = root
        self.is_cut = False
        self._jobs = JobFolder(root)
        self._listings: dict[Path, _Listing] = {}
        self._facts: dict[Path, tuple[tuple[Any, ...], RunFacts]] = {}
        self._refreshing = threading.Lock()

    def refresh(self) -> list[RunSummary]:
        """Read what has changed and return all runs: those that wait, then the newest first.

        A directory that cannot be read becomes a row with a problem, never an exception. Symbolic
        links are not followed.
        """
        with self._refreshing:
            found, unreadable = self._find()
            jobs = self._jobs.by_output()
            rows = [self._row(directory, jobs) for directory in found]
            there = {row.path for row in rows}
            rows += [
                _row_of_job(job)
                for path, job in jobs.items()
                if path not in there and job.state != "finished"  # it was moved or deleted
            ]
            rows += [RunSummary(path, "damaged", problem=why) for path, why in unreadable.items()]
        waiting = sorted(
            (row for row in rows if row.state == "queued"), key=lambda row: row.job or 0
        )
        others = [row for row in rows if row.state != "queued"]
        return waiting + sorted(others, key=lambda row: (-row.started_s, row.path))

    def summary(self, path: str) -> RunSummary | None:
        """Return the row of one run, or None if there is none at this path."""
        return next((row for row in self.refresh() if row.path == path), None)

    def _find(self) -> tuple[list[Path], dict[str, str]]:
        found: list[Path] = []
        unreadable: dict[str, str] = {}
        seen: dict[Path, _Listing] = {}
        waiting = [(self.root, 0)]
        while waiting and len(seen) < MOST_DIRECTORIES:
            directory, depth = waiting.pop()
            try:
                listing = self._list(directory)
            except OSError as error:
                if directory.exists() or directory.is_symlink():
                    unreadable[self._relative(directory)] = (
                        f"Cannot read {directory}: {error.strerror or error}. Check its "
                        "permissions."
                    )
                continue
            seen[directory] = listing
            if directory != self.root and is_run(listing.names):
                found.append(directory)
            elif depth < _DEEPEST:
                for name in listing.folders:
                    if is_utf8(name):
                        waiting.append((directory / name, depth + 1))
                    else:
                        unreadable[escaped(self._relative(directory / name))] = (
                            f"Cannot show {escaped(str(directory / name))}: its name is not UTF-8, "
                            "so that no address can hold it. Rename the directory."
                        )
        self.is_cut = bool(waiting)
        self._listings = seen
        self._facts = {path: known for path, known in self._facts.items() if path in seen}
        return found, unreadable

    def _list(self, directory: Path) -> _Listing:
        changed_ns = os.stat(directory).st_mtime_ns
        known = self._listings.get(directory)
        age_s = time.time() - changed_ns / 1e9
        # A time stamp of just now, or of the future after a clock was set back, proves nothing.
        if known is not None and known.changed_ns == changed_ns and age_s > _SETTLED_S:
            return known
        names: set[str] = set()
        folders: list[str] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                names.add(entry.name)
                is_shown = not entry.name.startswith((".", "checkpoint-"))
                if is_shown and entry.name not in _CLOSED and entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
        return _Listing(changed_ns, frozenset(names), tuple(folders))

    def _row(self, directory: Path, jobs: dict[str, Job]) -> RunSummary:
        now = signature(directory)
        known = self._facts.get(directory)
        facts = known[1] if known is not None and known[0] == now else read_facts(directory)
        self._facts[directory] = (now, facts)
        state, problem = state_of(directory, facts)
        row = RunSummary(
            path=self._relative(directory),
            state=state,
            kind=facts.kind,
            problem=problem,
            started_s=facts.started_s,
            task=facts.task,
            base=facts.base,
            notes=facts.notes,
            **facts.progress,
        )
        job = jobs.get(row.path)
        return row if job is None else _with_job(row, job, facts.changed_s)

    def _relative(self, directory: Path) -> str:
        return directory.relative_to(self.root).as_posix()


def _with_job(row: RunSummary, job: Job, changed_s: float) -> RunSummary:
    """Return a row with what the queue knows about the run: a resume that waits, or a failure."""
    row = replace(row, job=job.number)
    if row.state == "running":
        return row
    if job.state in ("queued", "running"):
        return replace(row, state=job.state, problem=None)
    if job.ended_s is not None and changed_s > job.ended_s + _SETTLED_S:
        return row  # it has been resumed in a terminal since
    if row.state == "interrupted" and job.state == "failed":
        return replace(row, state="failed", problem=job.problem())
    if row.state == "interrupted" and job.was_killed:
        return replace(row, problem=job.problem())
    return row


def _row_of_job(job: Job) -> RunSummary:
    """Return the row of a run whose directory is not there: it waits, begins, or has failed."""
    problem = job.problem() if job.state in ("failed", "interrupted") else None
    return RunSummary(
        path=job.output,
        state=job.state,
        problem=problem,
        started_s=job.started_s,
        task=job.about.get("task"),
        base=job.about.get("model"),
        job=job.number,
    )
