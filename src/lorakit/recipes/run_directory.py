"""A run directory, which holds everything a run produces; each file in it appears atomically."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Self, cast

from lorakit.errors import (
    CheckpointError,
    MissingFileError,
    OutputExistsError,
    did_you_mean,
    escaped,
)
from lorakit.files.atomic import creating_directory, leftovers, write_text
from lorakit.files.disks import reporting_disk_errors
from lorakit.recipes.directory_lock import LOCK_NAME, locking_directory
from lorakit.recipes.environment import environment_facts
from lorakit.recipes.recipe import Recipe, load_written_recipe

_INITIAL_FILES = {"recipe.yaml", "environment.json", "start_from", LOCK_NAME}
_SCRATCH_PREFIXES = (".optimizer-state-", ".seen-by-all-")
_PARTIAL_CHECKPOINT = re.compile(r"\.checkpoint-\d+\.[a-z0-9_]{8}")


@dataclass(frozen=True)
class RunDirectory:
    """The places in one run directory."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe; a directory with this file holds a run."""
        return self.path / "recipe.yaml"

    @property
    def environment_file(self) -> Path:
        """Versions and machine of the run."""
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        """Losses and metrics, one JSON object per line, append-only."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def adapter(self) -> Path:
        """The trained adapter with its tokenizer and chat template."""
        return self.path / "adapter"

    @property
    def start_from(self) -> Path:
        """Copy of the adapter that the run started from, if there is one."""
        return self.path / "start_from"

    @property
    def loss_plot(self) -> Path:
        """Plot of loss, main metric and learning rate over the steps."""
        return self.path / "loss.png"

    @property
    def predictions_file(self) -> Path:
        """Predictions for the validation examples, one JSON object per line."""
        return self.path / "predictions.jsonl"

    @property
    def evaluated_file(self) -> Path:
        """Predictions for the examples of the latest `lorakit evaluate`."""
        return self.path / "evaluation" / "predictions.jsonl"

    @property
    def confusion_plot(self) -> Path:
        """Plot of the validation examples by expected and predicted class."""
        return self.path / "confusion.png"

    @property
    def report_file(self) -> Path:
        """Report on the training and its results; written last."""
        return self.path / "report.md"

    @property
    def reference_file(self) -> Path:
        """Log-probabilities of the training examples under an objective's reference."""
        return self.path / "reference.safetensors"

    @property
    def verdict_file(self) -> Path:
        """Whether the adapter is better than the base, if the run has asked."""
        return self.path / "verdict.json"

    @property
    def failure_file(self) -> Path:
        """Why the last process of the run failed; there is none after success or a stop."""
        return self.path / "failure.json"

    @property
    def is_finished(self) -> bool:
        """Whether the run has its report and adapter."""
        return self.report_file.exists() and self.adapter.exists()

    @classmethod
    def around(cls, adapter: Path) -> Self | None:
        """Return the run that an adapter is a part of; None if a recipe merely lies beside it."""
        run, name = cls(adapter.parent), adapter.name
        is_part = name in (run.adapter.name, run.start_from.name) or name.startswith("checkpoint-")
        return run if is_part and run.recipe_file.is_file() else None

    @classmethod
    def refuse_occupied(cls, path: str | Path) -> None:
        """Raise unless a new run may be created at `path`.

        Raises:
            OutputExistsError: `path` holds a run or other files, or is a file or below one.
        """
        run = cls(Path(path))
        if run.recipe_file.exists():
            state = "a finished run" if run.is_finished else "a run that has not finished"
            step = "" if run.is_finished else "Continue it with `--resume`, or s"
            raise OutputExistsError(
                f"Cannot write to output {path}: it holds {state}, expected a new or empty "
                f"directory. {step or 'S'}et another `output`."
            )
        found = next((place for place in (run.path, *run.path.parents) if place.exists()), None)
        if found is not None and not found.is_dir():
            which = "it" if found == run.path else str(found)
            raise OutputExistsError(
                f"Cannot write to output {path}: {which} is a file, expected a new or empty "
                "directory. Set another `output`."
            )
        names = sorted(entry.name for entry in run.path.iterdir()) if run.path.exists() else []
        names = [name for name in names if name != LOCK_NAME]
        if names:
            listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise OutputExistsError(
                f"Cannot write to output {path}: it holds other files ({listed}), expected a new "
                "or empty directory. Set another `output`."
            )

    @classmethod
    def create(
        cls,
        path: str | Path,
        recipe: Recipe,
        held: ExitStack | None = None,
        facts: Mapping[str, Any] | None = None,
        copy_start: Callable[[Path], None] | None = None,
    ) -> Self:
        """Create a run directory; what is in it appears together.

        Args:
            path: Path of the new directory; an empty directory may exist there.
            recipe: Recipe of the run.
            held: Keeps the directory locked against other processes until it is closed; None does
                not lock it.
            facts: Further values for environment.json, such as `processes` if there are several.
            copy_start: Copies the adapter that the run starts from to a path.

        Raises:
            OutputExistsError: `path` is not empty.
        """
        cls.refuse_occupied(path)
        run = cls(Path(path))
        for left in leftovers(run.path.parent, [run.path.name]):
            ours = {*leftovers(left, _INITIAL_FILES), *(left / name for name in _INITIAL_FILES)}
            if left.is_dir() and ours.issuperset(left.iterdir()):
                shutil.rmtree(left, ignore_errors=True)  # left by a run that was killed here
        (run.path / LOCK_NAME).unlink(missing_ok=True)
        with ExitStack() as on_failure:
            with creating_directory(run.path) as partial:
                unfinished = cls(partial)
                if held is not None:
                    on_failure.enter_context(locking_directory(partial, final=run.path))
                unfinished.write_environment(facts or {})
                write_text(unfinished.recipe_file, recipe.to_yaml())
                if copy_start is not None:
                    copy_start(unfinished.start_from)
            if held is not None:
                held.enter_context(on_failure.pop_all())
        return run

    def remove_leftovers(self) -> list[Path]:
        """Delete temporary files that killed processes have left; return their paths."""
        whole = (self.recipe_file, self.environment_file, self.metrics_file, self.adapter)
        whole += (self.loss_plot, self.predictions_file, self.confusion_plot)
        whole += (self.report_file, self.verdict_file, self.failure_file)
        whole += (self.reference_file,)
        found = leftovers(self.path, [path.name for path in whole])
        found += [
            path
            for path in self.path.glob(".*")
            if path.name.startswith(_SCRATCH_PREFIXES) or _PARTIAL_CHECKPOINT.fullmatch(path.name)
        ]
        removed = sorted(found)
        for path in removed:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return removed

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing run directory.

        Raises:
            MissingFileError: There is no run at `path`.
        """
        run = cls(Path(path))
        if not run.recipe_file.exists():
            what = "no recipe.yaml in it" if run.path.is_dir() else "no such directory"
            raise MissingFileError(
                f"No run at {path}: there is {what}, expected a directory that `lorakit train` "
                "wrote. Check the path, or train first."
            )
        return run

    def recipe(self) -> Recipe:
        """Read the resolved recipe."""
        return load_written_recipe(self.recipe_file)

    @property
    def processes(self) -> int:
        """Number of processes the run was started with.

        Raises:
            CheckpointError: environment.json does not hold it.
        """
        try:
            facts = json.loads(self.environment_file.read_text(encoding="utf-8"))
            return int(facts.get("processes", 1))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"Cannot read {self.environment_file}: {_reason(error)}, expected a JSON object "
                'with the number of processes the run was started with. Write {"processes": 1} '
                "into it, or their number, and resume again."
            ) from None

    def write_environment(self, facts: Mapping[str, Any]) -> None:
        """Write versions, machine and other facts to environment.json."""
        environment = json.dumps(environment_facts() | dict(facts), indent=2)
        write_text(self.environment_file, environment + "\n")

    def write_recipe(self, recipe: Recipe) -> None:
        """Replace the resolved recipe, for example when a run is resumed with more epochs."""
        write_text(self.recipe_file, recipe.to_yaml())

    def write_failure(self, error: BaseException) -> None:
        """Write why the run failed, for those who look at it later."""
        facts = {
            "error": type(error).__name__,
            "message": escaped(str(error), keep="\n").split("\n"),
        }
        write_text(self.failure_file, json.dumps(facts) + "\n")

    def remove(self) -> None:
        """Delete the whole run directory."""
        shutil.rmtree(self.path, ignore_errors=True)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl and flush it to the disk.

        Numbers that JSON cannot represent (NaN, infinities) become null.
        """
        line = json.dumps({key: _jsonable(value) for key, value in row.items()}, allow_nan=False)
        with (
            reporting_disk_errors(self.metrics_file),
            self.metrics_file.open("a", encoding="utf-8", newline="\n") as file,
        ):
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl, without an incomplete last line.

        Raises:
            CheckpointError: A complete line is not a JSON object.
        """
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_bytes().split(b"\n")
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(lines[:-1], start=1):  # after the last newline: incomplete
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise CheckpointError(
                    f"Cannot read {self.metrics_file}: line {number} is not a JSON object. "
                    "Delete that line, or start another run under another `output`."
                )
            rows.append(cast(dict[str, Any], row))
        return rows

    def keep_metrics_until(self, step: int) -> None:
        """Drop what a resumed run writes again: rows of later steps, and from the summary on."""
        before_end = takewhile(lambda row: row.get("event") != "summary", self.metrics())
        rows = [row for row in before_end if row.get("step", 0) <= step]
        write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))


def find_adapter(path: str | Path) -> tuple[Path, Recipe | None]:
    """Return an adapter's directory and the recipe of its run, if it is in a run directory.

    Args:
        path: A run directory, or an adapter or checkpoint directory.

    Raises:
        MissingFileError: There is no adapter at `path`.
    """
    path = Path(path)
    is_run = (path / "recipe.yaml").exists()
    run = RunDirectory(path) if is_run else RunDirectory.around(path)
    adapter = RunDirectory(path).adapter if is_run else path
    if not (adapter / "adapter_config.json").exists():
        step = "Name a run directory, or a directory with adapter_config.json."
        found = "it has no adapter_config.json"
        if is_run:
            step = "Train on with `--resume`, or name a checkpoint directory in it."
        elif path.is_file():
            found = "it is a file"
        elif not path.exists():
            beside = [entry.name for entry in path.parent.glob("*")]
            found = "there is no such directory"
            step = f"Check the path.{did_you_mean(path.name, beside)} {step}"
        raise MissingFileError(f"No adapter at {adapter}: {found}. {step}")
    return adapter, None if run is None else run.recipe()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return "it is not JSON" if isinstance(error, ValueError) else f"{error}"


def _jsonable(value: Any) -> Any:
    if hasattr(value, "item"):  # scalars of numpy and torch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
