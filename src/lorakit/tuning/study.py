"""A study: which rank suffices on which modules, for the user's model and data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.analysis.guessing import Reference, first_reference
from lorakit.analysis.metric_text import metric_name
from lorakit.analysis.plots.studies import PlottedCell, plot_study
from lorakit.errors import ConfigError
from lorakit.files.atomic import write_text
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import SearchConfig, StudyConfig
from lorakit.tuning.cells import Cell, CellSpace
from lorakit.tuning.driver import (
    EventHandler,
    SearchDirectory,
    open_directory,
    require_best,
    run_all,
    with_chosen_dtype,
)
from lorakit.tuning.records import TrialRecord, warning_text
from lorakit.tuning.study_report import write_study
from lorakit.tuning.target_sets import (
    TargetSet,
    given_target_sets,
    model_target_sets,
    sets_at_depths,
)
from lorakit.tuning.trial import chosen_recipe


@dataclass(frozen=True)
class StudyResult:
    """Result of a study."""

    path: Path
    cells: tuple[Cell, ...]
    recommended: Cell
    best: Cell
    settings: StudyConfig
    records: tuple[TrialRecord, ...]
    wall_s: float
    """Seconds of this call, without those before a resume."""
    files: tuple[Path, ...]
    """Main files that were written."""
    warning: str | None = None
    """Warning about the recommendation."""


def study(
    recipe: Recipe | str | Path,
    *,
    resume: bool = False,
    address: str | None = None,
    on_event: EventHandler | None = None,
) -> StudyResult:
    """Train a grid of ranks and module sets with several seeds, configured by `study:`.

    The scaling lora_alpha / r of the recipe is used at every rank. The smallest sufficient cell is
    the one with the fewest adapted layers, where they vary, and then the fewest parameters, whose
    mean is within one standard error of the best mean.

    Args:
        recipe: A recipe, or the path of its YAML file.
        resume: Resume the study in `recipe.output`; finished runs are kept.
        address: Address of a Ray cluster to join, see `ray_cluster`; None starts Ray here.
        on_event: As for `lorakit.tuning.tune`.

    Raises:
        ConfigError, MissingFileError, DataError, TargetError: The recipe or its files are wrong.
        ClusterError: The cluster cannot be reached, or has less than a run requests.
        OutputExistsError: `output` holds files.
        CheckpointError: The study to resume was made with another recipe.
        TrainingError: Every run failed.
    """
    start_s = time.perf_counter()
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    settings = recipe.study or StudyConfig()
    directory = open_directory(recipe, "study", resume=resume)
    recipe = with_chosen_dtype(recipe, directory, on_event)
    space = _space_of(recipe, settings)
    shared = settings.model_dump(exclude={"ranks", "target_modules", "layers", "seeds", "budget"})
    search = SearchConfig(algorithm="grid", asha=None, **shared)
    runs = len(space.cells) * len(space.seeds)
    facts = {
        "grid": f"{len(space.cells)} cells, {len(space.seeds)} seeds each",
        "budget": f"{settings.budget}, scaling lora_alpha / r = {space.scaling:g}",
    }
    how: dict[str, Any] = {"resume": resume, "address": address, "on_event": on_event}
    records = run_all(recipe, search, space, runs, facts, directory, **how)
    require_best(records, search)
    cells = cells_with_results(space, records, search)
    best = best_cell(cells, search.is_minimized)
    recommended = smallest_sufficient(cells, best, is_minimized=search.is_minimized)
    reference = first_reference(RunDirectory(record.path) for record in records)
    warning = nothing_learnt(cells, settings, reference)
    files = _write_results(
        recipe, settings, cells, best, recommended, space.scaling, directory, warning
    )
    wall_s = time.perf_counter() - start_s
    return StudyResult(
        directory.path, cells, recommended, best, settings, tuple(records), wall_s, files, warning
    )


def _space_of(recipe: Recipe, settings: StudyConfig) -> CellSpace:
    if settings.layers is not None:
        sets = sets_at_depths(recipe, settings.target_modules, settings.layers)
    elif settings.target_modules is None:
        sets = model_target_sets(recipe)
    else:
        sets = given_target_sets(recipe, settings.target_modules)
    cells = grid_cells(settings.ranks, sets, equal_budget=settings.budget == "equal")
    # A pattern would override the rank and scaling that the study varies.
    lora = recipe.lora
    if lora.rank_pattern or lora.alpha_pattern:
        raise ConfigError(
            "A study varies the rank of all modules alike: got lora.rank_pattern or "
            "lora.alpha_pattern. Remove them."
        )
    return CellSpace(tuple(cells), settings.seeds, lora.lora_alpha / lora.r)


def grid_cells(
    ranks: Sequence[int], sets: Sequence[TargetSet], *, equal_budget: bool
) -> list[Cell]:
    """Return the cells of a grid, set by set.

    Args:
        ranks: Columns of the grid.
        sets: Rows of the grid.
        equal_budget: Whether all sets of a column get as many parameters as the widest one.
    """
    widest = max(target_set.parameters_per_rank for target_set in sets)
    cells = []
    for target_set in sets:
        factor = widest / target_set.parameters_per_rank if equal_budget else 1.0
        cells += [Cell(rank, max(1, round(rank * factor)), target_set) for rank in ranks]
    return cells


def cells_with_results(
    space: CellSpace, records: Sequence[TrialRecord], settings: SearchConfig
) -> tuple[Cell, ...]:
    """Return the cells with the results of their runs."""
    values: dict[int, list[float]] = {index: [] for index in range(len(space.cells))}
    failed = dict.fromkeys(values, 0)
    for record in records:
        index = space.cell_of(record.values)
        value = record.best_value(settings)
        if record.status == "failed" or value is None:
            failed[index] += 1
        else:
            values[index].append(value)
    return tuple(
        replace(cell, values=tuple(values[index]), failed=failed[index])
        for index, cell in enumerate(space.cells)
    )


def best_cell(cells: Sequence[Cell], is_minimized: bool) -> Cell:
    """Return the cell with the best mean."""
    choose = min if is_minimized else max
    return choose((cell for cell in cells if cell.values), key=lambda cell: cell.mean)


def smallest_sufficient(cells: Sequence[Cell], best: Cell, *, is_minimized: bool) -> Cell:
    """Return the smallest cell within one standard error of the best mean; see `Cell.size`."""
    sign = 1 if is_minimized else -1
    limit = sign * best.mean + best.standard_error
    good = [cell for cell in cells if cell.values and sign * cell.mean <= limit]
    return min(good, key=lambda cell: (cell.size, sign * cell.mean))


def nothing_learnt(
    cells: Sequence[Cell], settings: StudyConfig, reference: Reference | None
) -> str | None:
    """Return a warning if no cell is better than guessing by more than its deviation, else None."""
    if reference is None or any(
        reference.beaten_by(settings.metric, cell.mean, settings.is_minimized, cell.deviation)
        for cell in cells
        if cell.values
    ):
        return None
    return warning_text("No cell", settings.metric, reference)


def _write_results(
    recipe: Recipe,
    settings: StudyConfig,
    cells: tuple[Cell, ...],
    best: Cell,
    recommended: Cell,
    scaling: float,
    directory: SearchDirectory,
    warning: str | None,
) -> tuple[Path, ...]:
    metric = f"validation {metric_name(settings.metric)}"
    picture = directory.path / "study.png"
    title = f"Rank and modules: mean and standard deviation over {len(settings.seeds)} seeds"
    if len(settings.seeds) == 1:
        title = "Rank and modules, one seed"
    plotted = {id(cell): _plotted_cell(cell) for cell in cells if cell.values}
    ring = "best" if len(best.values) == 1 else "smallest sufficient"
    plot_study(list(plotted.values()), plotted[id(recommended)], metric, title, picture, ring)
    page = directory.path / "study.md"
    write_study(page, recipe, settings, cells, best, recommended, metric, warning)
    changes = {
        "lora.r": recommended.rank,
        "lora.lora_alpha": scaling * recommended.rank,
        **recommended.changes,
    }
    found = chosen_recipe(recipe, settings, changes, "recommended")
    recipe_file = directory.path / "recommended.yaml"
    comment = f"# The smallest sufficient cell of {page.name}.\n"
    comment += f"# {warning}\n" if warning else ""
    write_text(recipe_file, f"{comment}{found.to_yaml()}")
    return (page, picture, recipe_file, directory.trials_file, directory.trials)


def _plotted_cell(cell: Cell) -> PlottedCell:
    label = cell.target_set.label
    return PlottedCell(label, cell.rank, cell.parameters, cell.values, cell.mean, cell.deviation)
