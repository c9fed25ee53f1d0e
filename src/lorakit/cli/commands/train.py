"""`lorakit train`: train an adapter from a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.commands.plan_first import plan_first
from lorakit.cli.launched import is_first, is_launched_in_parallel
from lorakit.cli.paths import RECIPE_NAME
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import (
    Overrides,
    RecipeFile,
    require_one_recipe,
    split_recipes,
)
from lorakit.cli.signals import ending
from lorakit.cli.views.console import (
    closing,
    complain,
    merged_name,
    say,
    shell_quote,
    silence_stdout,
)
from lorakit.cli.views.progress import showing_data_progress
from lorakit.cli.views.result import show_result
from lorakit.cli.views.training import RunView
from lorakit.errors import ConfigError, LorakitError, StoppedError

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe
    from lorakit.training.stop_request import StopRequest


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be trained and on which data, then exit."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the last complete checkpoint.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train even if the plan does not fit.")
    ] = False,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Train several recipes on one base at once: RECIPE RECIPE ... --together.",
        ),
    ] = False,
    ray: Annotated[
        int | None,
        typer.Option("--ray", min=1, metavar="N", help="Train in N processes on Ray."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Ray cluster to join with --ray, or auto; by default Ray starts here.",
        ),
    ] = None,
) -> None:
    """Train an adapter from a recipe."""
    changes = overrides or []
    if together:
        _train_together(recipe, changes, resume=resume, force=force, dry_run=dry_run, ray=ray)
        return
    require_one_recipe(recipe, changes, "train")
    if address is not None and ray is None:
        raise ConfigError("--address requires --ray N: got no --ray. Add --ray N.")
    if ray is not None and is_launched_in_parallel():
        raise ConfigError(
            "--ray starts processes itself: got it in a process that a launcher (torchrun, "
            "accelerate launch) has started. Use one or the other."
        )
    if is_launched_in_parallel() and not is_first():
        silence_stdout()
    say(f"Reading {recipe} ...")
    loaded = _load(recipe, changes)
    is_of_a_run = recipe.name == RECIPE_NAME and (recipe.parent / "environment.json").is_file()
    names_output = any(change.partition("=")[0].strip() == "output" for change in changes)
    if resume and is_of_a_run and not names_output:
        # The directory is where the recipe is now: the user may have moved the run.
        loaded = loaded.model_copy(update={"output": str(recipe.parent)})
    hide_loading_bars()
    say(f"{loaded.task} on {loaded.model} with {loaded.data.train_name}")
    command = " ".join(["lorakit train", shell_quote(recipe), *map(shell_quote, changes)])
    if dry_run:
        from lorakit.cli.views.dry_run import show_dry_run
        from lorakit.training.preview import dry_run as preview

        with showing_data_progress():
            previewed = preview(loaded)
        show_dry_run(previewed)
        closing([], {command: "trains"})
        return
    if ray is not None:
        command += f" --ray {ray}" + (f" --address {shell_quote(address)}" if address else "")
    planned = None
    if not resume:
        with showing_data_progress():
            planned = plan_first(loaded, command, force=force, processes=ray)
    options: dict[str, Any] = {"resume": resume}
    if ray is not None:
        from lorakit.tuning.ray_training import train_on_ray as train_recipe

        options |= {"workers": ray, "address": address}
    else:
        from lorakit.training.run import train as train_recipe

        options |= {} if planned is None else {"planned_bytes": planned.measurable_bytes}
    with (
        ending.raising_interrupt() if ray is not None else nullcontext(),
        RunView() as view,
        stopping_on_signals(view, command) as stop,
        showing_data_progress(),
    ):
        result = train_recipe(loaded, on_event=view, stop=stop, **options)
    show_result(result)
    closing(result.files, next_commands(loaded, result.run_dir))
    if is_launched_in_parallel():
        from lorakit.distributed.processes import destroy_process_groups

        destroy_process_groups()
    exit_if_signalled()


def _train_together(
    recipe: Path,
    arguments: list[str],
    *,
    resume: bool,
    force: bool,
    dry_run: bool,
    ray: int | None,
) -> None:
    """Train the recipes among the arguments; those with an = change all of them."""
    if dry_run or ray is not None:
        option = "--dry-run" if dry_run else "--ray"
        raise ConfigError(
            f"--together trains in this process and has no preview: got {option} too. Use one of "
            "the two."
        )
    from lorakit.cli.commands.train_together import train_several

    recipes, changes = split_recipes(recipe, arguments)
    train_several(recipes, changes, resume=resume, force=force)
    exit_if_signalled()


def _load(path: Path, changes: list[str]) -> Recipe:
    """Read the recipe; each of several processes does, and all fail if one does."""
    from lorakit.recipes.recipe import Recipe

    if not is_launched_in_parallel():
        return Recipe.load(path, changes)
    from lorakit.distributed.processes import init_process_groups, run_on_all

    try:
        loaded, problem = Recipe.load(path, changes), None
    except LorakitError as error:
        loaded, problem = None, error

    def result() -> Recipe:
        if loaded is None:
            raise problem or ConfigError(f"Cannot read the recipe {path}.")
        return loaded

    training = loaded.training if loaded else {}
    init_process_groups(training.get("use_cpu"), training.get("ddp_timeout"))
    return run_on_all(result)


@contextmanager
def stopping_on_signals(view: RunView, command: str) -> Iterator[StopRequest]:
    """Yield a request that Ctrl-C and SIGTERM set; print how to resume if they end the block.

    Args:
        view: View of the run.
        command: Command to repeat with --resume.
    """
    from lorakit.training.stop_request import StopRequest

    stop = StopRequest()

    def state_left() -> str:
        if view.is_finished:
            return "The run is finished."
        if view.path is None:
            return "Nothing has been written."
        if not (view.path / RECIPE_NAME).is_file():
            return f"Nothing is left of the run: {view.path} has been deleted or moved."
        if not any(view.path.glob("checkpoint-*/manifest.json")):
            return f"No checkpoint is complete; start over with: {command} --resume"
        return f"Resume from the last complete checkpoint with: {command} --resume"

    with ending.ending_with(state_left, stop):
        try:
            yield stop
        except (KeyboardInterrupt, StoppedError) as error:
            view.progress.stop()
            if is_first():
                is_saved = isinstance(error, StoppedError)
                saved = (
                    f"Saved {error.checkpoint}; resume with: {command} --resume" if is_saved else ""
                )
                complain(f"{ending.reason()} {saved or state_left()}")
            raise typer.Exit(ending.exit_code()) from None
        except BrokenPipeError:  # the reader, such as `head`
            complain(f"The program that read this output has ended. {state_left()}")
            raise


def exit_if_signalled() -> None:
    """Exit with the code of a signal that arrived after the last step of a run."""
    if ending.number:
        complain(f"{ending.reason()} The run is finished.")
        raise typer.Exit(ending.exit_code())


def next_commands(recipe: Recipe, run: Path) -> dict[str, str]:
    """Return the next commands after a run."""
    name = shell_quote(run)
    example = {"SEQ_CLS": "classifies", "TOKEN_CLS": "tags"}.get(recipe.task, "continues")
    talking = {f"lorakit chat {name} --base": "talks to it, with the base beside it"}
    return {
        f'lorakit generate {name} "..." --base': f"{example} a text, with the adapter and without",
        **(talking if recipe.task == "CAUSAL_LM" else {}),
        f"lorakit evaluate {name} --data FILE": "measures it on other data",
        f"lorakit inspect {name}": "shows its contents",
        f"lorakit merge {name} {merged_name(run)}": "writes a plain checkpoint",
        f"tensorboard --logdir {name}": "shows the curves",
    }
