"""`lorakit tune`: search for the best values of some fields of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.console import (
    INTERRUPTED,
    closing,
    complain,
    duration_text,
    heading,
    number_text,
    pairs,
    quoted,
    say,
)
from lorakit.cli.progress import metric_name
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.trials_view import TrialsView, value_text

if TYPE_CHECKING:
    from lorakit.tuning.search import TuneResult


def tune(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as search.trials=20."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster to join: host:port or auto; else Ray starts here."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a search that was ended or killed.")
    ] = False,
) -> None:
    """Search for the best rank, modules, learning rate or other values of a recipe."""
    changes = overrides or []
    say(f"Reading {recipe} ...")
    from lorakit.training.recipe import Recipe
    from lorakit.tuning.cluster import import_ray

    import_ray()
    from lorakit.tuning.search import tune as search

    loaded = Recipe.load(recipe, changes)
    hide_loading_bars()
    say(f"{loaded.task} on {loaded.model} with {loaded.data.train}")
    joined = [] if address is None else ["--address", quoted(address)]
    command = " ".join(["lorakit tune", quoted(recipe), *map(quoted, changes), *joined])
    with TrialsView() as view:
        try:
            result = search(loaded, resume=resume, address=address, on_event=view)
        except KeyboardInterrupt:
            view.stop()
            how = f" Finished trials are kept; go on with: {command} --resume"
            complain("Interrupted." + (how if view.is_open else " Nothing has been written."))
            raise typer.Exit(INTERRUPTED) from None
    show_result(result)
    best = quoted(result.path / "best.yaml")
    closing(
        result.files,
        {
            f"lorakit train {best}": "trains the best on all rows",
            f"tensorboard --logdir {quoted(result.path / 'trials')}": "shows all trials",
        },
    )


def show_result(result: TuneResult) -> None:
    """Print how the trials ended, and the best one."""
    counts: dict[str, int] = {}
    for record in result.records:
        counts[record.status] = counts.get(record.status, 0) + 1
    ended = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    heading(f"Searched {len(result.records)} trials in {duration_text(result.wall_s)}: {ended}")
    for record in result.records:
        if record.error is not None:
            say(f"  {record.name} failed: {record.error}")
    row: Any = result.best.best(result.settings)
    name = f"{metric_name(result.settings.metric)} (epoch {row['epoch']:g})"
    values = {key: value_text(value) for key, value in result.best.values.items()}
    pairs({"best": result.best.name, name: number_text(result.best_value), **values})
