"""Open the directory of a run that is trained: create it, or restore it to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.distributed.processes import Terminated, is_main_process, process_count, run_on_main
from lorakit.distributed.shared_output import require_shared_directory
from lorakit.errors import DiskError, StoppedError, TrainingError
from lorakit.recipes import checkpoints
from lorakit.recipes.directory_lock import LOCK_NAME, locking_directory
from lorakit.recipes.numerics import note_changed_numerics
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.callbacks import EventHandler
from lorakit.training.example_digests import (
    KEY,
    LABELS_KEY,
    example_digests,
    note_changed_examples,
    require_same_labels,
)
from lorakit.training.resuming import note_lost_metrics, note_new_schedule
from lorakit.training.setup import Setup
from lorakit.training.starting_point import run_lineage


@dataclass(frozen=True)
class OpenRun:
    """A run directory that is being trained into."""

    directory: RunDirectory
    checkpoint: Path | None
    """The checkpoint to continue from; None to start from the beginning."""
    is_new: bool
    """Whether this process has created it."""


def require_free_output(output: str, resume: bool, held: ExitStack) -> None:
    """Check that the output can be written to, and lock an existing run."""
    if resume:
        held.enter_context(locking_directory(RunDirectory.open(output).path))
        return
    if (Path(output) / LOCK_NAME).exists():  # of a process that is running, or was killed
        held.enter_context(locking_directory(Path(output)))
    RunDirectory.refuse_occupied(output)


def open_run(
    setup: Setup, resume: bool, emit: EventHandler, held: ExitStack, planned_bytes: int | None
) -> OpenRun:
    """Create the run directory, or restore it to its newest complete checkpoint.

    Args:
        setup: What is trained.
        resume: Whether the run exists.
        emit: Receives the event "run_opened".
        held: Keeps the directory locked.
        planned_bytes: The planned peak memory, which the environment records.
    """
    run, event = run_on_main(
        lambda: _reopen(setup) if resume else _create(setup, held, planned_bytes)
    )
    emit("run_opened", event)
    require_shared_directory(run.directory.path)
    return run


def _create(
    setup: Setup, held: ExitStack, planned_bytes: int | None
) -> tuple[OpenRun, dict[str, Any]]:
    path = Path(setup.recipe.output)
    facts = _first_facts(setup)
    if setup.dtype_choice is not None:
        facts["dtype"] = setup.dtype_choice.facts()
    if planned_bytes is not None:
        facts["planned_bytes"] = planned_bytes
    copy_start = None if setup.start is None else setup.start.copy_to
    directory = RunDirectory.create(path, setup.recipe, held, facts, copy_start)
    run = OpenRun(directory, None, is_new=True)
    return run, {"path": path, "resumed_from": None, "removed": {}, "note": None}


def _first_facts(setup: Setup) -> dict[str, Any]:
    """Return what environment.json says about a run from its first step on."""
    return {
        KEY: example_digests(setup.encoded),
        LABELS_KEY: None if setup.labels is None else list(setup.labels),
        "processes": process_count(),
        run_lineage.KEY: run_lineage.lineage_of(setup.recipe, setup.start).model_dump(mode="json"),
    }


def _reopen(setup: Setup) -> tuple[OpenRun, dict[str, Any]]:
    path = Path(setup.recipe.output)
    directory = RunDirectory.open(path)
    directory.metrics()  # raises before anything is removed from a damaged run
    if checkpoints.newest_complete(path) is not None:
        require_same_labels(directory.environment_file, setup.labels)
    removed = {path: "a file that was being written" for path in directory.remove_leftovers()}
    removed |= checkpoints.remove_incomplete(path)
    checkpoint = checkpoints.newest_complete(path)
    directory.keep_metrics_until(checkpoints.step_of(checkpoint) if checkpoint else -1)
    schedule = note_new_schedule(directory, setup.recipe)
    directory.write_recipe(setup.recipe)
    for file in (directory.report_file, directory.verdict_file, directory.failure_file):
        file.unlink(missing_ok=True)
    parent = None if setup.start is None else setup.start.changed_note()
    if checkpoint is None:
        changes = ("There is no complete checkpoint; starting from the beginning.", parent)
        directory.write_environment(_first_facts(setup))
    else:
        file = directory.environment_file
        examples = note_changed_examples(file, example_digests(setup.encoded))
        lost = note_lost_metrics(directory, checkpoint)
        changes = (schedule, examples, note_changed_numerics(file), parent, lost)
    note = " ".join(filter(None, changes)) or None
    event = {"path": path, "resumed_from": checkpoint, "removed": removed, "note": note}
    return OpenRun(directory, checkpoint, is_new=False), event


@contextmanager
def recording_failure(run: OpenRun) -> Iterator[None]:
    """Write down why training failed; delete a new run that fails before its first checkpoint.

    The files of a run that was stopped, or whose disk was full, are kept.

    Raises:
        TrainingError: The run directory is gone, and training failed for that reason.
    """
    try:
        yield
    except (StoppedError, DiskError):
        raise
    except (Exception, Terminated) as error:
        if is_main_process():
            path = run.directory.path
            if isinstance(error, FileNotFoundError) and not path.exists():
                raise TrainingError(
                    f"Cannot write the run to {path}: the directory has been deleted or moved "
                    f"since training started, expected it to stay until the end ({error}). Train "
                    "again; if you have moved it, resume it where it is now."
                ) from error
            if run.is_new and checkpoints.newest_complete(run.directory.path) is None:
                run.directory.remove()
            elif not isinstance(error, Terminated):
                run.directory.write_failure(error)
        raise
