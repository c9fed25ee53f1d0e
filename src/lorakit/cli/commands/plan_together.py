"""`lorakit plan A B C --together`: the memory of several runs on one base in one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.views.console import closing, say, shell_quote, size_text, table
from lorakit.cli.views.progress import showing_data_progress
from lorakit.cli.views.together import short_names

if TYPE_CHECKING:
    from lorakit.planning import MemoryPlan

DOES_NOT_FIT = 1
"""Exit code."""


def plan_several(
    files: Sequence[Path], changes: Sequence[str], *, as_json: bool, **options: Any
) -> None:
    """Plan recipes that train together; exit if they do not fit.

    Args:
        files: The recipes' files.
        changes: Changes to each of them.
        as_json: Whether to print one JSON object only.
        options: Options of `lorakit.plan`: device and memory.

    Raises:
        ConfigError: The recipes cannot run together.
        PlanError: One of them cannot be planned.
    """
    if not as_json:
        say(f"Reading {', '.join(map(str, files))} ...")
    from lorakit.recipes.recipe import Recipe
    from lorakit.training.together.agreement import require_agreement

    recipes = [Recipe.load(file, [*changes]) for file in files]
    require_agreement(recipes)
    hide_loading_bars()
    from lorakit.planning import bytes_together, plan

    with showing_data_progress():
        plans = [plan(recipe, **options) for recipe in recipes]
    needed, there = bytes_together(plans), plans[0].memory_bytes
    fits = None if there is None else needed <= there
    if as_json:
        runs = {recipe.output: each.to_dict() for recipe, each in zip(recipes, plans, strict=True)}
        found = {"runs": runs, "needed_bytes": needed, "memory_bytes": there, "fits": fits}
        typer.echo(json.dumps(found, indent=2))
    else:
        say(f"{len(plans)} runs on {recipes[0].model}, together in one process")
        _show(short_names([recipe.output for recipe in recipes]), plans, needed)
        say(_verdict(needed, there), style="bold" if fits is False else None)
        command = " ".join(map(shell_quote, [*files, "--together", *changes]))
        closing([], {f"lorakit train {command}": "trains them"} if fits is not False else {})
    if fits is False:
        raise typer.Exit(DOES_NOT_FIT)


def _show(names: Sequence[str], plans: Sequence[MemoryPlan], needed: int) -> None:
    rows = [
        (
            name,
            f"{each.batch_rows} x {each.batch_tokens}",
            f"{each.trainable:,}",
            size_text(each.needed_bytes),
        )
        for name, each in zip(names, plans, strict=True)
    ]
    rows.append(("a process for each", "", "", size_text(sum(p.needed_bytes for p in plans))))
    rows.append(("together", "", "", size_text(needed)))
    table(("run", "batch", "trained", "memory at the peak"), rows)


def _verdict(needed: int, there: int | None) -> str:
    if there is None:
        return "Whether they fit is not known here: name the memory of the device (--memory)."
    if needed <= there:
        return f"They fit: {size_text(needed)} of {size_text(there)}."
    return (
        f"They do not fit: they need {size_text(needed)} of {size_text(there)}. Train fewer at a "
        "time, or one after another without --together."
    )
