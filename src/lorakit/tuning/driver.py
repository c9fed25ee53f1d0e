"""What a search and a study have in common: their directory, and running all of their trials."""

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
    MissingFileError,
    OutputExistsError,
    TrainingError,
)
from lorakit.files.atomic import write_text
from lorakit.files.private_files import is_private
from lorakit.recipes.directory_lock import locking_directory
from lorakit.recipes.recipe import Recipe, changed_keys
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import SearchConfig, TrialsConfig
from lorakit.tuning.cluster import ray_cluster
from lorakit.tuning.ray_tune import require_room_for_trials, run_trials
from lorakit.tuning.records import TrialRecord, best_record, write_trials
from lorakit.tuning.trial import MetricError, Samples, TrialPlan, epochs_of, trial_recipe

EventHandler = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class SearchDirectory:
    """The places in the directory of a search or a study."""

    path: Path
    kind: Literal["search", "study"]

    @property
    def recipe_file(self) -> Path:
        """The recipe that is searched or studied; a directory with this file holds that."""
        return self.path / f"{self.kind}.yaml"

    @property
    def trials(self) -> Path:
        """The run directories of the trials."""
        return self.path / "trials"

    @property
    def ray(self) -> Path:
        """Ray's own record of the search, from which it is restarted."""
        return self.path / "ray"

    @property
    def base(self) -> Path:
        """What the trials map their bases from; deleted at the end."""
        return self.path / "base"

    @property
    def trials_file(self) -> Path:
        """A row for each trial."""
        return self.path / "trials.csv"

    @property
    def held(self) -> str | None:
        """What the directory holds, or None."""
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
    """Run all trials of a search or study, and keep trials.csv as new as what is told of them.

    Args:
        recipe: What is searched or studied.
        settings: How trials are run, chosen and stopped.
        space: Where their values come from.
        trials: How many.
        facts: What else to tell of the plan, by name.
        directory: Its own, looked at by `open_directory`.
        resume: Whether to go on with what is there.
        address: Of a cluster to join; None starts Ray in this process.
        on_event: Told of "planned" and "trials".

    Returns:
        A record of each trial; one of them at least can be judged.

    Raises:
        DataError, MissingFileError, ConfigError, ClusterError, TrainingError: See `tune`.
    """
    tell = on_event or (lambda name, payload: None)
    plan, train_examples = _plan_trials(recipe, settings, space, directory)
    with ExitStack() as held, ray_cluster(address) as machines:
        require_room_for_trials(settings, machines)
        directory.path.mkdir(parents=True, exist_ok=True)
        held.enter_context(locking_directory(directory.path))
        directory.trials.mkdir(exist_ok=True)
        directory.base.mkdir(mode=0o700, exist_ok=True)
        if not is_private(directory.base):
            facts = {**facts, "base": "each trial loads a copy, as others can write to the output"}
        if not resume:
            _refuse_held(directory)  # another process may have begun one meanwhile
            write_text(directory.recipe_file, recipe.to_yaml())
        planned = {"space": space, "trials": trials, "epochs": epochs_of(plan.recipe, settings)}
        tell(
            "planned",
            {**planned, "train_examples": train_examples, "settings": settings, "facts": facts},
        )

        def on_change(records: list[TrialRecord], changed: TrialRecord) -> None:
            write_trials(records, settings, directory.trials_file)
            tell("trials", {"records": records, "changed": changed})

        record_path = directory.ray.resolve()
        with _removed_if_it_cannot_be_judged(directory, is_new=not resume):
            records = run_trials(plan, settings, trials, machines, record_path, on_change)
    shutil.rmtree(directory.base, ignore_errors=True)
    write_trials(records, settings, directory.trials_file)
    return records


def open_directory(
    recipe: Recipe, kind: Literal["search", "study"], *, resume: bool
) -> SearchDirectory:
    """Look at the output of a search or study before anything is done.

    Raises:
        OutputExistsError: A new search would overwrite something.
        MissingFileError: There is nothing to resume.
        CheckpointError: What is there was made with another recipe.
    """
    directory = SearchDirectory(Path(recipe.output), kind)
    held = directory.held
    if not resume:
        _refuse_held(directory)
        RunDirectory.refuse_occupied(recipe.output)
        return directory
    if held != kind:
        raise MissingFileError(
            f"Nothing to resume in {recipe.output}: there is no {directory.recipe_file.name} in "
            f"it, expected the directory of a {kind}. Check `output`, or leave --resume out."
        )
    changed = [
        key
        for key in changed_keys(Recipe.load(directory.recipe_file), recipe)
        if key != "output" and not key.endswith("max_concurrent")
    ]
    if changed:
        raise CheckpointError(
            f"Cannot resume {recipe.output}: the recipe now differs from {directory.recipe_file} "
            f"in {', '.join(changed)}. Undo the changes, or set another `output`."
        )
    return directory


def _refuse_held(directory: SearchDirectory) -> None:
    if directory.held is not None:
        raise OutputExistsError(
            f"Cannot write to output {directory.path}: it holds a {directory.held}, expected a new "
            "or empty directory. Go on with it by `--resume`, or set another `output`."
        )


def _plan_trials(
    recipe: Recipe, settings: TrialsConfig, space: Samples, directory: SearchDirectory
) -> tuple[TrialPlan, int]:
    """Return what all trials have in common, and the number of training rows of each.

    Raises:
        DataError, MissingFileError: The rows are not there or cannot be read.
        ConfigError: There are no rows to evaluate on.
    """
    from lorakit.data import load_splits
    from lorakit.training.tasks import task_for
    from lorakit.training.tasks.base import seed_of

    task = task_for(recipe.task)
    seed = seed_of(recipe)
    splits = load_splits(recipe.data, seed, task.label_column(recipe), task.columns(recipe))
    if splits.validation is None:
        raise ConfigError(
            "Trials are compared on validation examples and there are none: data.validation is not "
            "given and data.validation_fraction is 0. Set one of the two."
        )
    trial = trial_recipe(recipe, settings, len(splits.train))
    rows = trial.data.max_train_rows or len(splits.train)
    plan = TrialPlan(trial, space, settings, directory.trials.resolve(), directory.base.resolve())
    return plan, min(rows, len(splits.train))


@contextmanager
def _removed_if_it_cannot_be_judged(directory: SearchDirectory, *, is_new: bool) -> Iterator[None]:
    """Delete a new search whose metric no trial reports, so that it can be put right and begun."""
    try:
        yield
    except MetricError:
        if is_new:
            shutil.rmtree(directory.path, ignore_errors=True)
        raise


def require_best(records: list[TrialRecord], settings: TrialsConfig) -> TrialRecord:
    """Return the best trial.

    Raises:
        TrainingError: There is none, as all have failed.
    """
    best = best_record(records, settings)
    if best is None:
        errors = list(dict.fromkeys(record.error or "no evaluation" for record in records))
        raise TrainingError(
            f"All {len(records)} trials failed: " + "\n  ".join(errors[:3]) + " Nothing was found."
        )
    return best
