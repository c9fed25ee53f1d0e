"""What one run directory holds, read in milliseconds and without importing torch."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lorakit.config import TaskType
from lorakit.errors import LorakitError, escaped
from lorakit.files.json_files import read_json_object
from lorakit.recipes import yaml_text
from lorakit.recipes.directory_lock import has_ended, lock_holder
from lorakit.recipes.run_directory import RunDirectory
from lorakit.runs.metric_log import is_number, parse_row
from lorakit.runs.notes import Notes, read_notes
from lorakit.runs.paths import read_end
from lorakit.runs.trials import BEST_FILES, kind_of

State = Literal["queued", "running", "finished", "failed", "interrupted", "damaged"]
STATES: tuple[State, ...] = get_args(State)
Kind = Literal["run", "search", "study"]

NO_NOTES = Notes()

_TAIL_BYTES = 65_536
_MOST_TAIL_BYTES = 4_194_304
_METRICS = ("eval_accuracy", "eval_f1", "eval_perplexity", "eval_loss")
"""Metric to show of an evaluation, if the recipe names none: the first that it has."""
_PLACES = {"step": "step", "wall_s": "wall_s", "train_tokens_per_s": "tokens_per_s"}
"""Fields of a summary by the keys of the log."""


@dataclass(frozen=True)
class RunSummary:
    """One row of the list of runs.

    Attributes:
        path: Path below the folder of runs, with slashes.
        kind: A run, or a search or study, whose trials are runs in its directory `trials`.
        state: What it is doing, from its files and the process ids in them.
        problem: Why it is damaged or has failed, or what else one should know; None if nothing.
        started_s: Time at which it was created, in seconds since 1970.
        task: Task of its recipe; None if that cannot be read.
        base: Base model of its recipe.
        metric: Name of the metric of `value`, such as "eval_accuracy".
        value: Metric of the newest evaluation.
        step: Optimizer steps so far.
        wall_s: Seconds of training so far.
        tokens_per_s: Speed that was logged last.
        notes: Its tags and its note.
        job: Id of the queue's job that writes it; None if it was started in another way.
    """

    path: str
    state: State
    kind: Kind = "run"
    problem: str | None = None
    started_s: float = 0.0
    task: str | None = None
    base: str | None = None
    metric: str | None = None
    value: float | None = None
    step: int | None = None
    wall_s: float | None = None
    tokens_per_s: float | None = None
    notes: Notes = NO_NOTES
    job: int | None = None

    @property
    def name(self) -> str:
        """Last part of its path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class RunFacts:
    """What the files of a run say, which stays true until one of them changes."""

    kind: Kind
    task: str | None
    base: str | None
    is_finished: bool
    failure: str | None
    problem: str | None
    started_s: float
    changed_s: float
    progress: Mapping[str, Any]
    """Fields of `RunSummary` that say how far it has got."""
    notes: Notes


def read_facts(directory: Path) -> RunFacts:
    """Read the files of a run directory; what is wrong with them is its `problem`."""
    run = RunDirectory(directory)
    problems: list[str] = []
    values: Mapping[str, Any] = {}
    kind = kind_of(directory)
    recipe_file = run.recipe_file if kind is None else directory / f"{kind}.yaml"
    try:
        values = _recipe_values(run, recipe_file)
    except LorakitError as error:
        problems.append(str(error))
    progress: dict[str, Any] = {}
    try:
        progress = _progress(run.metrics_file, values)
    except (OSError, ValueError) as error:
        problems.append(f"Cannot read {run.metrics_file}: {error}.")
    notes = NO_NOTES
    try:
        notes = read_notes(directory)
    except LorakitError as error:
        problems.append(str(error))
    is_finished = run.report_file.exists() and run.adapter.exists()
    if kind is not None:
        is_finished = (directory / BEST_FILES[kind]).exists()
    return RunFacts(
        kind=kind or "run",
        task=values.get("task"),
        base=values.get("model"),
        is_finished=is_finished,
        failure=_failure(run.failure_file),
        problem=" ".join(problems) or None,
        started_s=_time_of(run.environment_file, recipe_file, run.path),
        changed_s=_time_of(run.metrics_file, recipe_file, run.path),
        progress=progress,
        notes=notes,
    )


def signature(directory: Path) -> tuple[Any, ...]:
    """Return a value that differs when a file that `read_facts` reads has changed."""
    run = RunDirectory(directory)
    read = (run.recipe_file, run.environment_file, run.metrics_file, run.report_file, run.adapter)
    names = ("notes.json", "search.yaml", "study.yaml", *BEST_FILES.values())
    read += (run.failure_file, *(directory / name for name in names))
    return tuple(file_stamp(path) for path in read)


def state_of(directory: Path, facts: RunFacts) -> tuple[State, str | None]:
    """Return what a run is doing now, and a sentence about it if there is something to say."""
    holder = lock_holder(directory)
    if holder and not has_ended(holder):
        host = holder.get("host")
        if host != socket.gethostname():
            where = escaped(str(host))[:80]
            return "running", (
                f"It runs on {where} or was killed there, which cannot be seen from here. If it is "
                f"no longer running, delete {directory / '.lock'}."
            )
        return "running", facts.problem
    if facts.problem is not None:
        return "damaged", facts.problem
    if facts.is_finished:
        return "finished", None
    if facts.failure is not None:
        return "failed", facts.failure
    return "interrupted", None


def is_run(names: Set[str]) -> bool:
    """Return whether a directory with these entries is a run, a search or a study.

    A recipe alone is none: it may lie in a folder of recipes or beside data. A run that has lost
    its recipe is one.
    """
    if "trials" in names and not names.isdisjoint(("search.yaml", "study.yaml")):
        return True
    has_checkpoints = any(name.startswith("checkpoint-") for name in names)
    signs = (has_checkpoints or "environment.json" in names, "metrics.jsonl" in names)
    if "recipe.yaml" in names:
        return any(signs) or "adapter" in names
    return all(signs)


def _recipe_values(run: RunDirectory, recipe_file: Path) -> Mapping[str, Any]:
    if recipe_file == run.recipe_file:
        run.open(run.path)  # raises if there is no recipe
    values = yaml_text.read_mapping(recipe_file)
    problems = [key for key in ("model", "task", "data", "output") if key not in values]
    if problems or values["task"] not in list(TaskType) or not isinstance(values["model"], str):
        got = f"no {', '.join(problems)}" if problems else f"task {values['task']!r}"[:80]
        raise LorakitError(
            f"Cannot read {recipe_file}: got {got}, expected the recipe that lorakit wrote. "
            " Restore it, or move the run to the trash."
        )
    return values


def _progress(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the newest values of a log of metrics, from its end.

    Raises:
        ValueError: A line near the end is not a JSON object.
        OSError: It cannot be read.
    """
    if not path.exists():
        return {}
    training = values.get("training")
    wanted = training.get("metric_for_best_model") if isinstance(training, dict) else None
    tail_bytes = _TAIL_BYTES
    while True:
        rows, is_whole = _tail(path, tail_bytes)
        evaluations = [row for row in rows if row.get("event") == "evaluation"]
        if evaluations or is_whole or tail_bytes >= _MOST_TAIL_BYTES:
            break
        tail_bytes *= 4
    found: dict[str, Any] = {}
    for row in rows:
        found |= {name: row[key] for key, name in _PLACES.items() if is_number(row.get(key))}
    if evaluations:
        names = (f"eval_{str(wanted).removeprefix('eval_')}",) if wanted else ()
        last = evaluations[-1]
        metric = next((name for name in (*names, *_METRICS) if is_number(last.get(name))), None)
        if metric is not None:
            found |= {"metric": metric, "value": float(last[metric])}
    return found


def _tail(path: Path, most_bytes: int) -> tuple[list[dict[str, Any]], bool]:
    """Return the rows in the last bytes of a file, without an incomplete last line."""
    data, is_whole = read_end(path, most_bytes)
    lines = data.split(b"\n")[0 if is_whole else 1 : -1]
    rows: list[dict[str, Any]] = []
    for line in lines:
        row = parse_row(line)
        if row is None:
            raise ValueError("a line near its end is not a JSON object; delete that line")
        rows.append(row)
    return rows, is_whole


def _failure(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        lines = read_json_object(path).get("message")
    except ValueError:
        lines = None
    return "\n".join(map(str, lines)) if isinstance(lines, list) else "The reason is not known."


def _time_of(*paths: Path) -> float:
    """Return when the first of some files that is there was changed."""
    for path in paths:
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what differs when a file has changed; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
