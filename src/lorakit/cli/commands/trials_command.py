"""Options and progress that `lorakit tune` and `lorakit study` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.signals import ending
from lorakit.cli.views.console import complain, say, shell_quote
from lorakit.cli.views.trials import TrialsView

Result = TypeVar("Result")

Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Ray cluster to join, or auto; by default Ray starts on this machine.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted search or study.")]


def run_with_progress(
    name: str,
    run: Callable[..., Result],
    recipe: Path,
    overrides: list[str] | None,
    address: str | None,
    resume: bool,
) -> Result:
    """Read a recipe, run its trials, and show their progress.

    Args:
        name: Name of the command, to repeat it with --resume after Ctrl-C.
        run: Function of the recipe, `resume`, `address` and `on_event`.
        recipe: File of the recipe.
        overrides: Changes to the recipe.
        address: Address of a cluster to join.
        resume: Whether to resume an interrupted search.
    """
    from lorakit.recipes.recipe import Recipe

    changes = overrides or []
    loaded = Recipe.load(recipe, changes)
    hide_loading_bars()
    say(f"{loaded.task} on {loaded.model} with {loaded.data.train_name}")
    joined = [] if address is None else ["--address", shell_quote(address)]
    command = " ".join(
        [f"lorakit {name}", shell_quote(recipe), *map(shell_quote, changes), *joined]
    )
    with TrialsView() as view, ending.raising_interrupt():
        try:
            return run(loaded, resume=resume, address=address, on_event=view)
        except KeyboardInterrupt:
            view.stop()
            how = f" Finished trials are kept; resume with: {command} --resume"
            complain(ending.reason() + (how if view.is_open else " Nothing has been written."))
            raise typer.Exit(ending.exit_code()) from None
