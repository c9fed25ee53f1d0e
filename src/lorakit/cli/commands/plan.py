"""`lorakit plan`: the memory of a recipe, before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.commands.plan_together import DOES_NOT_FIT, plan_several
from lorakit.cli.paths import require_place_of_file
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import (
    Overrides,
    RecipeFile,
    require_one_recipe,
    split_recipes,
)
from lorakit.cli.views.console import closing, say, shell_quote
from lorakit.cli.views.progress import showing_data_progress
from lorakit.errors import ConfigError

if TYPE_CHECKING:
    from lorakit.planning import MemoryPlan
    from lorakit.recipes.recipe import Recipe


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory of the device, such as 16GB; by default detected."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|cuda", help="Device of the run; by default that of this machine."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of processes that train together.")
    ] = 1,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Also load the base and time three training steps."),
    ] = False,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Plan several recipes that train in one process: RECIPE RECIPE ... --together.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only the plan, as one JSON object.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="PNG file for a plot of the plans side by side."),
    ] = None,
) -> None:
    """Predict the memory of a training run, without loading weights.

    The exit code is 1 if the run does not fit.
    """
    changes = overrides or []
    if together:
        given = {"--processes": processes > 1, "--measure": measure, "--plot": plot is not None}
        if any(given.values()):
            option = next(name for name, is_given in given.items() if is_given)
            raise ConfigError(
                "--together plans the memory of one process, without a measurement or a plot: got "
                f"{option} too, expected only one of them. Use one of the two."
            )
        recipes, changes = split_recipes(recipe, changes)
        plan_several(recipes, changes, as_json=as_json, device=device, memory=memory)
        return
    require_one_recipe(recipe, changes, "plan")
    if plot is not None:
        require_place_of_file(plot, "the plot")
    if not as_json:
        say(f"Reading {recipe} ...")
    from lorakit.recipes.recipe import Recipe

    loaded = Recipe.load(recipe, changes)
    hide_loading_bars()
    from lorakit.planning import find_sources
    from lorakit.planning import plan as plan_memory
    from lorakit.training.tasks import task_of

    options: dict[str, Any] = {"device": device, "memory": memory, "processes": processes}
    with showing_data_progress():
        options["sources"] = find_sources(loaded, task_of(loaded))
    planned = plan_memory(loaded, **options)
    if as_json:
        typer.echo(json.dumps(_as_json(loaded, planned, options, measure, plot), indent=2))
        if planned.fits is False:
            raise typer.Exit(DOES_NOT_FIT)
        return
    from lorakit.cli.views.plan import (
        show_changes,
        show_depths,
        show_measurement,
        show_methods,
        show_plan,
    )

    say(f"{loaded.task} on {loaded.model} with {loaded.data.train_name}")
    show_plan(planned)
    from lorakit.planning.alternatives import changes as possible_changes
    from lorakit.planning.alternatives import side_by_side

    methods = side_by_side(loaded, planned, **options)
    show_methods(methods)
    from lorakit.planning.depths import depths

    show_depths(depths(loaded, planned, **options), loaded.frozen_part.cache_bytes)
    if planned.fits is False:
        show_changes(possible_changes(loaded, planned, **options))
    if measure:
        from lorakit.planning.measurement import measure as measure_steps

        say("Measuring three steps ...")
        show_measurement(measure_steps(loaded), planned)
    command = " ".join([shell_quote(recipe), *map(shell_quote, changes)])
    if plot is not None:
        _draw(methods, planned, loaded, plot)
    fits = planned.fits is not False
    next_commands = {f"lorakit train {command}": "trains"} if fits else {}
    if not measure:
        next_commands[f"lorakit plan {command} --measure"] = "loads the base and times three steps"
    closing([plot] if plot is not None else [], next_commands)
    if not fits:
        raise typer.Exit(DOES_NOT_FIT)


def _as_json(
    recipe: Recipe,
    planned: MemoryPlan,
    options: dict[str, Any],
    measure: bool,
    plot: Path | None,
) -> dict[str, Any]:
    """Return the plan, with the measurement if requested."""
    from lorakit.planning.depths import depths

    found_depths = depths(recipe, planned, **options)
    values = planned.to_dict()
    values["depths"] = {name: asdict(made) for name, made in found_depths.items()}
    if plot is not None:
        from lorakit.planning.alternatives import side_by_side

        _draw(side_by_side(recipe, planned, **options), planned, recipe, plot)
    if measure:
        from lorakit.planning.measurement import measure as measure_steps

        found = measure_steps(recipe)
        values |= {
            "step_s": found.step_s,
            "run_s": found.run_s,
            "updates": found.updates,
            "measured_peak_bytes": found.memory.peak_bytes,
        }
    return values


def _draw(methods: dict[str, MemoryPlan], planned: MemoryPlan, recipe: Recipe, path: Path) -> None:
    from lorakit.analysis.plots.memory import plot_memory
    from lorakit.planning.memory_plan import PURPOSES

    batch = f"{planned.batch_rows} x {planned.batch_tokens} tokens"
    title = f"Memory to train {Path(recipe.model).name}: {batch}, {planned.device}"
    path.parent.mkdir(parents=True, exist_ok=True)
    bars = {name: made.at_peak for name, made in methods.items()}
    plot_memory(bars, PURPOSES, path, title, planned.memory_bytes)
