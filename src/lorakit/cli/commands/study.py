"""`lorakit study`: find which rank suffices on which modules."""

from __future__ import annotations

from lorakit.analysis.metric_text import metric_name
from lorakit.cli.commands.trials_command import Address, Resume, run_with_progress
from lorakit.cli.shared_arguments import Overrides, RecipeFile
from lorakit.cli.views.console import (
    closing,
    duration_text,
    heading,
    number_text,
    say,
    shell_quote,
    table,
)


def study(
    recipe: RecipeFile,
    overrides: Overrides = None,
    address: Address = None,
    resume: Resume = False,
) -> None:
    """Find the smallest rank that suffices, and on which modules.

    Trains a grid of ranks and modules with several seeds.
    """
    say(f"Reading {recipe} ...")
    from lorakit.libraries.ray_cluster import import_ray

    import_ray()
    from lorakit.tuning.study import study as train_grid
    from lorakit.tuning.study_report import recommendation

    result = run_with_progress("study", train_grid, recipe, overrides, address, resume)
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
    if result.warning is not None:
        say(f"Warning: {result.warning}", style="yellow")
    say(text.replace("**", ""))
    for record in result.records:
        if record.error is not None:
            say(f"  {record.name} failed: {record.error}")
    page = result.path / "recommended.yaml"
    closing(result.files, {f"lorakit train {shell_quote(page)}": "trains the recommendation"})
