"""`lorakit tune`: search for the best values of fields of a recipe."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from lorakit.analysis.metric_text import metric_name
from lorakit.cli.commands.trials_command import Address, Resume, run_with_progress
from lorakit.cli.shared_arguments import Overrides, RecipeFile
from lorakit.cli.views.console import (
    closing,
    duration_text,
    heading,
    number_text,
    pairs,
    say,
    shell_quote,
)
from lorakit.cli.views.trials import value_text

if TYPE_CHECKING:
    from lorakit.tuning.search import TuneResult


def tune(
    recipe: RecipeFile,
    overrides: Overrides = None,
    address: Address = None,
    resume: Resume = False,
) -> None:
    """Search for the best rank, modules and learning rate.

    The `search` section of the recipe can name other fields.
    """
    say(f"Reading {recipe} ...")
    from lorakit.libraries.ray_cluster import import_ray

    import_ray()
    from lorakit.tuning.search import tune as search

    result = run_with_progress("tune", search, recipe, overrides, address, resume)
    show_result(result)
    best = shell_quote(result.path / "best.yaml")
    closing(
        result.files,
        {
            f"lorakit train {best}": "trains the best values on all examples",
            f"tensorboard --logdir {shell_quote(result.path / 'trials')}": "shows all trials",
        },
    )


def show_result(result: TuneResult) -> None:
    """Print how the trials ended, and the best one."""
    counts = Counter(record.status for record in result.records)
    ended = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    heading(f"Searched {len(result.records)} trials in {duration_text(result.wall_s)}: {ended}")
    for record in result.records:
        if record.error is not None:
            say(f"  {record.name} failed: {record.error}")
    row: Any = result.best.best(result.settings)
    name = f"{metric_name(result.settings.metric)} (epoch {row['epoch']:g})"
    values = {key: value_text(value) for key, value in result.best.values.items()}
    if result.warning is not None:
        say(f"Warning: {result.warning}", style="yellow")
    pairs({"best": result.best.name, name: number_text(row[result.settings.metric]), **values})
