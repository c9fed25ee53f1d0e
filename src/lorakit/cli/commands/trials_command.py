"""What `lorakit tune` and `lorakit study` have in common: options, and showing their trials."""

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
    typer.Option(help="A Ray cluster to join: host:port or auto; else Ray starts here."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with what was ended or killed before its end.")
]


def run_with_progress(
    name: str,
    run: Callable[..., Result],
    recipe: Path,
    overrides: list[str] | None,
    address: str | None,
    resume: bool,
) -> Result:
    """Read a recipe, run its trials, and draw them.

    Args:
        name: Of the command, to repeat it with --resume after Ctrl-C.
        run: Takes the recipe, `resume`, `address` and `on_event`.
        recipe: The recipe's file.
        overrides: Changes to it.
        address: Of a cluster to join.
        resume: Whether to go on with what is there.
    """
    from lorakit.recipes.recipe import Recipe

    changes = overrides or []
    loaded = Recipe.load(recipe, changes)
    hide_loading_bars()
    say(f"{loaded.task} on {loaded.model} with {loaded.data.train}")
    joined = [] if address is None else ["--address", shell_quote(address)]
    command = " ".join(
        [f"lorakit {name}", shell_quote(recipe), *map(shell_quote, changes), *joined]
    )
    with TrialsView() as view, ending.raising_interrupt():
        try:
            return run(loaded, resume=resume, address=address, on_event=view)
        except KeyboardInterrupt:
            view.stop()
            how = f" Finished trials are kept; go on with: {command} --resume"
            complain(ending.reason() + (how if view.is_open else " Nothing has been written."))
            raise typer.Exit(ending.exit_code()) from None
