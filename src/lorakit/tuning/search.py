"""Search: many trials of one recipe on Ray Tune, and the recipe of the best."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.analysis.guessing import reference_of
from lorakit.analysis.plots.searches import PlottedTrial, plot_search
from lorakit.files.atomic import write_text
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import SearchConfig, TrialsConfig
from lorakit.tuning.driver import (
    EventHandler,
    SearchDirectory,
    open_directory,
    require_best,
    run_all,
    with_chosen_dtype,
)
from lorakit.tuning.records import TrialRecord, warning_text, write_hparams
from lorakit.tuning.space import Space, default_space, label_of
from lorakit.tuning.target_sets import model_target_sets
from lorakit.tuning.trial import chosen_recipe, epochs_of

DEFAULT_TRIALS = 8


@dataclass(frozen=True)
class TuneResult:
    """Result of a search."""

    path: Path
    records: tuple[TrialRecord, ...]
    best: TrialRecord
    settings: SearchConfig
    wall_s: float
    """Seconds of this call, without those before a resume."""
    files: tuple[Path, ...]
    """Main files that were written."""
    warning: str | None = None
    """Warning about the best trial."""

    @property
    def best_value(self) -> float | None:
        """Metric of the best epoch of the best trial."""
        return self.best.best_value(self.settings)


def tune(
    recipe: Recipe | str | Path,
    *,
    resume: bool = False,
    address: str | None = None,
    on_event: EventHandler | None = None,
) -> TuneResult:
    """Search for the best values of fields of a recipe, configured by its `search:` section.

    Every trial is a run in `trials/` under the output of the recipe. All trials on a machine map
    one copy of the base.

    Args:
        recipe: A recipe, or the path of its YAML file.
        resume: Resume the search in `recipe.output`: finished trials are kept, the others continue
            from their last checkpoint.
        address: Address of a Ray cluster to join, see `ray_cluster`; None starts Ray here.
        on_event: Called as `on_event(name, payload)` with
            "dtype" {note} if the recipe has `dtype: auto`,
            "planned" {space, trials, epochs, train_examples, settings, facts (further facts)},
            "together" {note} if trials train together,
            "trials" {records, changed (the record that changed)} when a trial starts, reports or
            ends.

    Raises:
        ConfigError, MissingFileError, DataError: The recipe, its space or its files are wrong, or
            no trial reports the metric.
        ClusterError: The cluster cannot be reached, or has less than a trial requests.
        OutputExistsError: `output` holds files.
        CheckpointError: The search to resume was made with another recipe.
        TrainingError: Every trial failed.
    """
    start_s = time.perf_counter()
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    settings = recipe.search or SearchConfig()
    directory = open_directory(recipe, "search", resume=resume)
    recipe = with_chosen_dtype(recipe, directory, on_event)
    space = _space_of(recipe, settings)
    trials = space.grid_size if settings.algorithm == "grid" else settings.trials or DEFAULT_TRIALS
    facts = {
        "sampling": _ALGORITHMS[settings.algorithm],
        "stopped early": _asha_text(settings),
    }
    how: dict[str, Any] = {"resume": resume, "address": address, "on_event": on_event}
    records = run_all(recipe, settings, space, trials, facts, directory, **how)
    best = require_best(records, settings)
    warning = nothing_learnt(best, settings)
    files = _write_results(recipe, records, best, settings, space, directory, warning)
    wall_s = time.perf_counter() - start_s
    return TuneResult(directory.path, tuple(records), best, settings, wall_s, files, warning)


def nothing_learnt(best: TrialRecord, settings: TrialsConfig) -> str | None:
    """Return a warning if the best trial is not better than guessing, else None."""
    reference = reference_of(RunDirectory(best.path))
    value = best.best_value(settings)
    if reference is None or value is None:
        return None
    if reference.beaten_by(settings.metric, value, settings.is_minimized):
        return None
    return warning_text("No trial", settings.metric, reference)


def _space_of(recipe: Recipe, settings: SearchConfig) -> Space:
    """Return the space of the recipe, or the default one with module sets of the model."""
    if settings.space is not None:
        space = Space(settings.space, "search.space")
    else:
        space = Space(default_space(model_target_sets(recipe)), "the default search.space")
    space.check(recipe, settings)
    return space


_ALGORITHMS = {
    "random": "random",
    "grid": "grid, every combination once",
    "tpe": "TPE (Optuna), which learns from finished trials",
}


def _asha_text(settings: SearchConfig) -> str:
    asha = settings.asha
    if asha is None:
        return "none"
    return (
        f"at each rung all but one in {asha.reduction_factor:g} (ASHA, first rung after "
        f"{asha.grace_period} {'epoch' if asha.grace_period == 1 else 'epochs'})"
    )


def _write_results(
    recipe: Recipe,
    records: list[TrialRecord],
    best: TrialRecord,
    settings: SearchConfig,
    space: Space,
    directory: SearchDirectory,
    warning: str | None,
) -> tuple[Path, ...]:
    for record in records:
        write_hparams(record, settings)
    best_recipe = directory.path / "best.yaml"
    _write_best_recipe(recipe, best, settings, best_recipe, warning)
    plots = plot_search(
        [_plotted_trial(record, settings, space) for record in records],
        settings.metric,
        settings.is_minimized,
        directory.path,
        [key for key, values in space.distributions.items() if values.log_uniform],
    )
    return (best_recipe, directory.trials_file, *plots, directory.trials)


def _write_best_recipe(
    recipe: Recipe, best: TrialRecord, settings: TrialsConfig, path: Path, warning: str | None
) -> None:
    """Write the recipe with the best values, for all examples and with a separate output."""
    found = chosen_recipe(recipe, settings, best.values, "best")
    row = best.best(settings) or {}
    comment = (
        f"# {best.name}: {settings.metric} {row[settings.metric]:.6g} after epoch "
        f"{row['epoch']:g} of {epochs_of(recipe, settings)}, searched by `lorakit tune`."
    )
    comment += f"\n# {warning}" if warning else ""
    write_text(path, f"{comment}\n{found.to_yaml()}")


def _plotted_trial(record: TrialRecord, settings: TrialsConfig, space: Space) -> PlottedTrial:
    """Return a trial for the plots, without fields that copy others."""
    free_keys = [
        key for key, distribution in space.distributions.items() if not distribution.same_as
    ]
    return PlottedTrial(
        record.name,
        record.status,
        {key: label_of(record.values[key]) for key in free_keys},
        tuple(
            (row["epoch"], row[settings.metric])
            for row in record.evaluations
            if row.get(settings.metric) is not None
        ),
    )
