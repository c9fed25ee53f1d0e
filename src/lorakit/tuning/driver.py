"""The directory of a search or a study, and running its trials."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorakit.errors import (
    CheckpointError,
    ConfigError,
    LorakitError,
    MissingFileError,
    OutputExistsError,
    TrainingError,
)
from lorakit.files.atomic import write_text
from lorakit.files.private_files import is_private
from lorakit.libraries.ray_cluster import ray_cluster
from lorakit.recipes.directory_lock import locking_directory
from lorakit.recipes.recipe import Recipe, changed_keys, load_written_recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import SearchConfig, TrialsConfig
from lorakit.tuning.groups import Groups
from lorakit.tuning.ray_tune import require_trial_resources, run_trials
from lorakit.tuning.records import TrialRecord, best_record, write_trials
from lorakit.tuning.trial import MetricError, Samples, TrialPlan, epochs_of, trial_recipe

EventHandler = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class SearchDirectory:
    """Paths in the directory of a search or a study."""

    path: Path
    kind: Literal["search", "study"]

    @property
    def recipe_file(self) -> Path:
        """The searched or studied recipe; the file identifies the directory."""
        return self.path / f"{self.kind}.yaml"

    @property
    def trials(self) -> Path:
        """Run directories of the trials."""
        return self.path / "trials"

    @property
    def ray(self) -> Path:
        """Ray's record of the search, from which it resumes."""
        return self.path / "ray"

    @property
    def base(self) -> Path:
        """Files that the trials map their bases from; deleted at the end."""
        return self.path / "base"

    @property
    def trials_file(self) -> Path:
        """CSV file with a row for each trial."""
        return self.path / "trials.csv"

    @property
    def existing_kind(self) -> str | None:
        """Kind of the directory on disk, or None."""
        kinds = (kind for kind in ("search", "study") if (self.path / f"{kind}.yaml").exists())
        return next(kinds, None)


def run_all(
    recipe: Recipe,
    settings: SearchConfig,
    space: Samples,
    trials: int,
    facts: dict[str, str],
    directory: SearchDirectory,
    *,
    resume: bool,
    address: str | None,
    on_event: EventHandler | None,
) -> list[TrialRecord]:
    """Run all trials of a search or study, updating trials.csv before each event.

    Args:
        recipe: Recipe to search or study.
        settings: How trials are run, chosen and stopped.
        space: Source of their values.
        trials: Number of trials.
        facts: Further facts for the event "planned", by name.
        directory: Result of `open_directory`.
        resume: Whether to resume an interrupted search.
        address: Address of a cluster to join; None starts Ray in this process.
        on_event: Handler of the events "planned", "together" and "trials".

    Returns:
        A record of each trial.

    Raises:
        DataError, MissingFileError, ConfigError, ClusterError, TrainingError: See `tune`.
    """
    emit = on_event or (lambda name, payload: None)
    plan, train_examples = _plan_trials(recipe, settings, space, directory)
    with ExitStack() as stack, ray_cluster(address) as machines:
        require_trial_resources(settings, machines)
        directory.path.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locking_directory(directory.path))
        if not resume:
            _refuse_existing(directory)  # another process may have started one meanwhile
            # Written first: a search that is killed from here on can be resumed.
            write_text(directory.recipe_file, recipe.to_yaml())
        directory.trials.mkdir(exist_ok=True)
        directory.base.mkdir(mode=0o700, exist_ok=True)
        if not is_private(directory.base):
            facts = {
                **facts,
                "base": "each trial loads a copy, because others can write to the output",
            }
        planned = {"space": space, "trials": trials, "epochs": epochs_of(plan.recipe, settings)}
        emit(
            "planned",
            {**planned, "train_examples": train_examples, "settings": settings, "facts": facts},
        )

        def on_change(records: list[TrialRecord], changed: TrialRecord) -> None:
            write_trials(records, settings, directory.trials_file)
            emit("trials", {"records": records, "changed": changed})

        def on_groups(groups: Groups) -> None:
            emit("together", {"note": groups.note})

        record_path = directory.ray.resolve()
        with _removing_unusable_search(directory, is_new=not resume):
            records = run_trials(
                plan, settings, trials, machines, record_path, on_change, on_groups
            )
    shutil.rmtree(directory.base, ignore_errors=True)
    write_trials(records, settings, directory.trials_file)
    return records


def open_directory(
    recipe: Recipe, kind: Literal["search", "study"], *, resume: bool
) -> SearchDirectory:
    """Check the output of a search or study before it starts.

    Raises:
        OutputExistsError: A new search would overwrite files.
        MissingFileError: There is nothing to resume.
        CheckpointError: The search to resume was made with another recipe, or with other files.
    """
    directory = SearchDirectory(Path(recipe.output), kind)
    existing_kind = directory.existing_kind
    if not resume:
        _refuse_existing(directory)
        RunDirectory.refuse_occupied(recipe.output)
        return directory
    if existing_kind != kind:
        raise MissingFileError(
            f"Nothing to resume in {recipe.output}: there is no {directory.recipe_file.name} in "
            f"it, expected the directory of a {kind}. Check `output`, or remove --resume."
        )
    written = load_written_recipe(directory.recipe_file)
    recipe = recipe.with_precision_of(written) if recipe.dtype == "auto" else recipe
    changed = [
        key
        for key in changed_keys(written, recipe)
        if key != "output" and not key.endswith(("max_concurrent", "together"))
    ]
    if changed:
        raise CheckpointError(
            f"Cannot resume {recipe.output}: the recipe now differs from {directory.recipe_file} "
            f"in {', '.join(changed)}. Undo the changes, or set another `output`."
        )
    _refuse_changed_files(directory)
    return directory


def with_chosen_dtype(
    recipe: Recipe, directory: SearchDirectory, on_event: EventHandler | None
) -> Recipe:
    """Return the recipe with one dtype for all trials, where it has `dtype: auto`.

    The dtype is chosen once, on this machine and the recipe's adapter; a resumed search keeps it.

    Args:
        recipe: Recipe to search or study.
        directory: Result of `open_directory`.
        on_event: Handler of the event "dtype".

    Raises:
        LorakitError: As `train` would raise before its first step.
    """
    if recipe.dtype != "auto":
        return recipe
    if directory.recipe_file.exists():
        return recipe.with_precision_of(load_written_recipe(directory.recipe_file))
    from lorakit.training.setup import prepare

    def emit(name: str, payload: dict[str, Any]) -> None:
        if name == "dtype" and on_event is not None:
            on_event(name, payload)

    return recipe.with_precision_of(prepare(recipe, emit).recipe)


def _refuse_changed_files(directory: SearchDirectory) -> None:
    """Refuse to compare new trials with those that were made from other data or another base.

    The first trial that recorded its files stands for all. What is missing is reported later.
    """
    from lorakit.training.starting_point.run_lineage import lineage_of, read_lineage

    for path in sorted(directory.trials.glob("*")):
        run = RunDirectory(path)
        before = read_lineage(run.environment_file)
        if before is None or not run.recipe_file.is_file():
            continue
        trial = load_written_recipe(run.recipe_file)
        now = lineage_of(trial, None)
        known = {source.name: source.sha256 for source in before.data}
        files = [(source.name, known.get(source.name, ""), source.sha256) for source in now.data]
        files.append((trial.model, before.base_digest, now.base_digest))
        changed = [name for name, old, new in files if None not in (old, new) and old != new]
        if changed:
            raise CheckpointError(
                f"Cannot resume {directory.path}: {', '.join(changed)} changed since "
                f"{run.path.name} began, so the next trials could not be compared with it. Restore "
                "the files, or set another `output`."
            )
        return


def _refuse_existing(directory: SearchDirectory) -> None:
    if directory.existing_kind is not None:
        raise OutputExistsError(
            f"Cannot write to output {directory.path}: it holds a {directory.existing_kind}, "
            "expected a new or empty directory. Resume it with `--resume`, or set another `output`."
        )


def _plan_trials(
    recipe: Recipe, settings: TrialsConfig, space: Samples, directory: SearchDirectory
) -> tuple[TrialPlan, int]:
    """Return the plan that all trials share, and the number of training examples of each.

    Raises:
        DataError, MissingFileError: The data is missing or cannot be read.
        ConfigError: There are no validation examples.
    """
    from lorakit.data import load_splits
    from lorakit.training.tasks import task_of
    from lorakit.training.tasks.base import seed_of

    task = task_of(recipe)
    seed = seed_of(recipe)
    splits = load_splits(recipe.data, seed, task.label_column(recipe), task.columns(recipe))
    if splits.validation is None:
        raise ConfigError(
            "Trials are compared on validation examples, but there are none: data.validation is "
            "missing and data.validation_fraction is 0. Set one of the two."
        )
    trial = trial_recipe(recipe, settings, len(splits.train))
    examples = trial.data.max_train_rows or len(splits.train)
    plan = TrialPlan(trial, space, settings, directory.trials.resolve(), directory.base.resolve())
    return plan, min(examples, len(splits.train))


@contextmanager
def _removing_unusable_search(directory: SearchDirectory, *, is_new: bool) -> Iterator[None]:
    """Delete a new search that fails before its first trial, or whose metric no trial reports.

    So the recipe can be corrected and started again.
    """
    try:
        yield
    except LorakitError as error:
        is_unusable = isinstance(error, MetricError) or not any(directory.trials.iterdir())
        if is_new and is_unusable:
            shutil.rmtree(directory.path, ignore_errors=True)
        raise


def require_best(records: list[TrialRecord], settings: TrialsConfig) -> TrialRecord:
    """Return the best trial.

    Raises:
        TrainingError: All trials failed.
    """
    best = best_record(records, settings)
    if best is None:
        errors = list(dict.fromkeys(record.error or "no evaluation" for record in records))
        raise TrainingError(
            f"All {len(records)} trials failed: "
            + "\n  ".join(errors[:3])
            + " There is no best trial."
        )
    return best
