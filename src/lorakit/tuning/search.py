"""Search: many trials of one recipe on Ray Tune, and the recipe of the best."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.analysis.search_plots import PlottedTrial, plot_search
from lorakit.atomic import write_text
from lorakit.errors import (
    CheckpointError,
    ConfigError,
    MissingFileError,
    OutputExistsError,
    TrainingError,
)
from lorakit.training.recipe import Recipe, changed_keys
from lorakit.training.run_directory import RunDirectory
from lorakit.training.search_config import SearchConfig, TrialsConfig
from lorakit.tuning.cluster import ray_cluster
from lorakit.tuning.ray_tune import require_room_for_trials, run_trials
from lorakit.tuning.records import TrialRecord, best_record, write_hparams, write_trials
from lorakit.tuning.space import Space, default_space, label_of
from lorakit.tuning.target_sets import own_target_sets
from lorakit.tuning.trial import MetricError, Samples, TrialPlan, epochs_of, trial_recipe

EventHandler = Callable[[str, dict[str, Any]], None]

DEFAULT_TRIALS = 8


@dataclass(frozen=True)
class SearchDirectory:
    """The places in the directory of a search or a study."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The recipe that was searched; a directory with this file holds a search or a study."""
        return self.path / "search.yaml"

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
    def best_recipe(self) -> Path:
        """The best trial's values in a recipe to train."""
        return self.path / "best.yaml"


@dataclass(frozen=True)
class TuneResult:
    """What a search found."""

    path: Path
    records: tuple[TrialRecord, ...]
    best: TrialRecord
    best_value: float
    settings: SearchConfig
    wall_s: float
    """Seconds of this call; those before a restart are not in it."""
    files: tuple[Path, ...]
    """What was written and is worth opening."""


def tune(
    recipe: Recipe | str | Path,
    *,
    resume: bool = False,
    address: str | None = None,
    on_event: EventHandler | None = None,
) -> TuneResult:
    """Search for the best values of some fields of a recipe, as its `search:` section says.

    Every trial is an ordinary run in `trials/` under the recipe's output. All trials of a machine
    map one copy of the base.

    Args:
        recipe: A recipe, or the path of its YAML file.
        resume: Go on with the search in `recipe.output`: finished trials are kept, the others go
            on from their last checkpoint.
        address: Of a Ray cluster to join, see `ray_cluster`; None starts Ray in this process.
        on_event: Called as `on_event(name, payload)` with
            "planned" {space, trials, epochs, train_rows, settings, facts (what else to tell)},
            "trials" {records, changed (the record that changed)} whenever a trial begins, reports
            or ends.

    Raises:
        ConfigError, MissingFileError, DataError: The recipe, its space or what it names is wrong,
            or no trial reports the metric.
        ClusterError: The cluster is not there, or has less than a trial asks for.
        OutputExistsError: `output` holds files.
        CheckpointError: The search to resume was made with another recipe.
        TrainingError: Every trial failed.
    """
    began_s = time.perf_counter()
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    tell = on_event or (lambda name, payload: None)
    settings = recipe.search or SearchConfig()
    directory = open_directory(recipe, resume=resume)
    space = _space_of(recipe, settings)
    trials = space.grid_size if settings.algorithm == "grid" else settings.trials or DEFAULT_TRIALS
    plan, train_rows = plan_trials(recipe, settings, space, directory)
    with ray_cluster(address) as machines:
        require_room_for_trials(settings, machines)
        directory.trials.mkdir(parents=True, exist_ok=True)
        if not resume:
            write_text(directory.recipe_file, recipe.to_yaml())
        tell("planned", _planned(space, trials, plan, settings, train_rows))
        with removed_if_it_cannot_be_judged(directory, is_new=not resume):
            records = run_trials(
                plan,
                settings,
                trials,
                machines,
                directory.ray.resolve(),
                lambda records, one: _tell_and_write(records, one, settings, directory, tell),
            )
    shutil.rmtree(directory.base, ignore_errors=True)
    best = require_best(records, settings)
    files = _write_results(recipe, records, best, settings, space, directory)
    return TuneResult(
        directory.path,
        tuple(records),
        best,
        best.best_value(settings) or 0.0,
        settings,
        time.perf_counter() - began_s,
        files,
    )


@contextmanager
def removed_if_it_cannot_be_judged(directory: SearchDirectory, *, is_new: bool) -> Iterator[None]:
    """Delete a new search whose metric no trial reports, so that it can be put right and begun."""
    try:
        yield
    except MetricError:
        if is_new:
            shutil.rmtree(directory.path, ignore_errors=True)
        raise


def open_directory(recipe: Recipe, *, resume: bool) -> SearchDirectory:
    """Look at the output of a search or study before anything is done.

    Raises:
        OutputExistsError: A new search would overwrite something.
        MissingFileError: There is nothing to resume.
        CheckpointError: What is there was made with another recipe.
    """
    directory = SearchDirectory(Path(recipe.output))
    there = directory.recipe_file.exists()
    if not resume:
        if there:
            raise OutputExistsError(
                f"Cannot write to output {recipe.output}: it holds a search, expected a new or "
                "empty directory. Go on with it by `--resume`, or set another `output`."
            )
        RunDirectory.refuse_occupied(recipe.output)
        return directory
    if not there:
        raise MissingFileError(
            f"Nothing to resume in {recipe.output}: there is no {directory.recipe_file.name} in "
            "it, expected the directory of a search. Check `output`, or leave --resume out."
        )
    changed = [
        key
        for key in changed_keys(Recipe.load(directory.recipe_file), recipe)
        if key != "output" and not key.endswith("max_concurrent")
    ]
    if changed:
        raise CheckpointError(
            f"Cannot resume {recipe.output}: the recipe now differs from {directory.recipe_file} "
            f"in {', '.join(changed)}. Undo the changes, or search under another `output`."
        )
    return directory


def plan_trials(
    recipe: Recipe, settings: TrialsConfig, space: Samples, directory: SearchDirectory
) -> tuple[TrialPlan, int]:
    """Return what all trials have in common, and the number of training rows of each.

    Raises:
        DataError, MissingFileError: The rows are not there or cannot be read.
        ConfigError: There are no rows to evaluate on.
    """
    from lorakit.training.data import load_splits
    from lorakit.training.tasks.base import seed_of

    splits = load_splits(recipe.data, seed_of(recipe))
    if splits.validation is None:
        raise ConfigError(
            "Trials are compared on validation rows and there are none: data.validation is not "
            "given and data.validation_fraction is 0. Set one of the two."
        )
    trial = trial_recipe(recipe, settings, len(splits.train))
    rows = trial.data.max_train_rows or len(splits.train)
    plan = TrialPlan(trial, space, settings, directory.trials.resolve(), directory.base.resolve())
    return plan, min(rows, len(splits.train))


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


def _space_of(recipe: Recipe, settings: SearchConfig) -> Space:
    """Return the recipe's space, or the default one with sets of the model's own matrices."""
    if settings.space is not None:
        space = Space(settings.space, "search.space")
    else:
        space = Space(default_space(own_target_sets(recipe)), "the default search.space")
    space.check(recipe, settings.algorithm)
    return space


def _planned(
    space: Space, trials: int, plan: TrialPlan, settings: SearchConfig, train_rows: int
) -> dict[str, Any]:
    return {
        "space": space,
        "trials": trials,
        "epochs": epochs_of(plan.recipe, settings),
        "train_rows": train_rows,
        "settings": settings,
        "facts": {
            "values are drawn": _ALGORITHMS[settings.algorithm],
            "stopped early": _asha_text(settings),
        },
    }


_ALGORITHMS = {
    "random": "at random",
    "grid": "as a grid, every combination once",
    "tpe": "by TPE (Optuna), which learns from finished trials",
}


def _asha_text(settings: SearchConfig) -> str:
    asha = settings.asha
    if asha is None:
        return "none"
    return (
        f"at each rung all but one in {asha.reduction_factor:g} (ASHA, first rung after "
        f"{asha.grace_period} {'epoch' if asha.grace_period == 1 else 'epochs'})"
    )


def _tell_and_write(
    records: list[TrialRecord],
    changed: TrialRecord,
    settings: TrialsConfig,
    directory: SearchDirectory,
    tell: EventHandler,
) -> None:
    """Keep trials.csv as new as what is told, so that a killed search leaves its table."""
    write_trials(records, settings, directory.trials_file)
    tell("trials", {"records": records, "changed": changed})


def _write_results(
    recipe: Recipe,
    records: list[TrialRecord],
    best: TrialRecord,
    settings: SearchConfig,
    space: Space,
    directory: SearchDirectory,
) -> tuple[Path, ...]:
    write_trials(records, settings, directory.trials_file)
    for record in records:
        write_hparams(record, settings)
    write_best_recipe(recipe, best, settings, directory)
    plots = plot_search(
        [_plotted(record, settings, space) for record in records],
        settings.metric,
        settings.is_minimized,
        directory.path,
    )
    return (directory.best_recipe, directory.trials_file, *plots, directory.trials)


def write_best_recipe(
    recipe: Recipe, best: TrialRecord, settings: TrialsConfig, directory: SearchDirectory
) -> None:
    """Write the recipe with the best trial's values: on all rows, into a directory of its own."""
    training = {"training.num_train_epochs": epochs_of(recipe, settings)}
    changes = {**training, **best.values, "output": str(Path(recipe.output) / "best")}
    found = recipe.with_changes({**changes, "search": None, "study": None}, "the best trial")
    row = best.best(settings) or {}
    comment = (
        f"# {best.name}: {settings.metric} {row[settings.metric]:.6g} after epoch "
        f"{row['epoch']:g} of {training['training.num_train_epochs']}, searched by `lorakit tune`."
    )
    write_text(directory.best_recipe, f"{comment}\n{found.to_yaml()}")


def _plotted(record: TrialRecord, settings: TrialsConfig, space: Space) -> PlottedTrial:
    """Return a trial as the plots take it; copies of other fields would show nothing new."""
    own = [key for key, distribution in space.distributions.items() if not distribution.same_as]
    return PlottedTrial(
        record.name,
        record.status,
        {key: label_of(record.values[key]) for key in own},
        tuple(
            (row["epoch"], row[settings.metric])
            for row in record.evaluations
            if row.get(settings.metric) is not None
        ),
    )
