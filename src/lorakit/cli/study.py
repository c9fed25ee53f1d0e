"""`lorakit study`: which rank suffices on which modules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli.console import (
    INTERRUPTED,
    closing,
    complain,
    duration_text,
    heading,
    number_text,
    quoted,
    say,
    table,
)
from lorakit.cli.progress import metric_name
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.trials_view import TrialsView


def study(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as 'study.ranks=[1, 4]'."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster to join: host:port or auto; else Ray starts here."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a study that was ended or killed.")
    ] = False,
) -> None:
    """Train a grid of ranks and modules with several seeds, and see which suffices."""
    changes = overrides or []
    say(f"Reading {recipe} ...")
    from lorakit.training.recipe import Recipe
    from lorakit.tuning.cluster import import_ray

    import_ray()
    from lorakit.tuning.study import study as train_grid
    from lorakit.tuning.study_report import recommendation

    loaded = Recipe.load(recipe, changes)
    hide_loading_bars()
    say(f"{loaded.task} on {loaded.model} with {loaded.data.train}")
    joined = [] if address is None else ["--address", quoted(address)]
    command = " ".join(["lorakit study", quoted(recipe), *map(quoted, changes), *joined])
    with TrialsView() as view:
        try:
            result = train_grid(loaded, resume=resume, address=address, on_event=view)
        except KeyboardInterrupt:
            view.stop()
            how = f" Finished runs are kept; go on with: {command} --resume"
            complain("Interrupted." + (how if view.is_open else " Nothing has been written."))
            raise typer.Exit(INTERRUPTED) from None
    heading(f"Studied {len(result.cells)} cells in {duration_text(result.wall_s)}")
    metric = metric_name(result.settings.metric)
    table(
        ("modules", "r", "parameters", f"mean {metric}", "deviation", "runs", "failed"),
        [
            (
                cell.target_set.label,
                cell.rank,
                number_text(cell.parameters),
                number_text(cell.mean) if cell.values else "",
                number_text(cell.deviation) if len(cell.values) > 1 else "",
                len(cell.values),
                cell.failed or "",
            )
            for cell in result.cells
        ],
    )
    text = recommendation(
        result.cells, result.best, result.recommended, result.settings, f"validation {metric}"
    )
    say(text.replace("**", ""))
    for record in result.records:
        if record.error is not None:
            say(f"  {record.name} failed: {record.error}")
    page = result.path / "recommended.yaml"
    closing(result.files, {f"lorakit train {quoted(page)}": "trains what is recommended"})
