"""`lorakit train A B C --together`: train several recipes on one base, with one pass for all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lorakit.cli.commands.plan_first import plan_together_first
from lorakit.cli.launched import is_first, is_launched_in_parallel
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.signals import ending
from lorakit.cli.views.console import closing, complain, heading, say, shell_quote
from lorakit.cli.views.progress import showing_data_progress
from lorakit.cli.views.result import show_result
from lorakit.cli.views.together import GroupView, short_names
from lorakit.errors import ConfigError, LorakitError, OutputExistsError, StoppedError

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe
    from lorakit.training.run import TrainResult


def train_several(
    recipes: Sequence[Path], changes: Sequence[str], *, resume: bool, force: bool
) -> None:
    """Train recipes together, and show the progress of each.

    Of several processes that a launcher has started, each trains a part of them together.

    Args:
        recipes: The recipes' files.
        changes: Changes to each of them.
        resume: Whether to continue the runs.
        force: Whether to train even if the plan does not fit.

    Raises:
        ConfigError: The recipes cannot run together.
        PlanError: They do not fit into memory together.
    """
    from lorakit.distributed.launcher import require_launcher_variables
    from lorakit.distributed.own_runs import beside_others, own_share
    from lorakit.recipes.recipe import Recipe
    from lorakit.training.together.agreement import require_agreement

    require_launcher_variables()
    if is_first():
        say(f"Reading {', '.join(map(str, recipes))} ...")
    loaded = [Recipe.load(path, [*changes]) for path in recipes]
    require_agreement(loaded)
    _refuse_sharding()
    hide_loading_bars()
    files = " ".join(map(shell_quote, recipes))
    command = " ".join(["lorakit train", files, "--together", *map(shell_quote, changes)])
    ours = own_share(loaded)
    with beside_others() if is_launched_in_parallel() else nullcontext():
        if ours:
            _train_group(ours, command, resume=resume, force=force)


def _train_group(loaded: Sequence[Recipe], command: str, *, resume: bool, force: bool) -> None:
    """Train recipes in this process, show their progress, and exit if one has failed."""
    from lorakit.training.stop_request import StopRequest
    from lorakit.training.together import train_together

    say(f"{len(loaded)} runs on {loaded[0].model}, together in one process")
    if not resume:
        with showing_data_progress():
            plan_together_first(loaded, force=force)
    view = GroupView(short_names([recipe.output for recipe in loaded]))
    stop = StopRequest()

    def state_left() -> str:
        if not view.opened:
            return "Nothing has been written."
        return f"Resume the runs that are not finished with: {command} --resume"

    with ending.ending_with(state_left, stop):
        results = train_together(loaded, resume=resume, on_event=view, stop=stop)
    finished = [result for result in results if not isinstance(result, BaseException)]
    exit_code = 0
    for number, result in enumerate(results):
        if not isinstance(result, BaseException):
            heading(view.names[number])
            show_result(result)
            continue
        if isinstance(result, StoppedError):
            complain(f"{view.names[number]}: saved {result.checkpoint}")
            exit_code = max(exit_code, ending.exit_code())
        elif resume and isinstance(result, OutputExistsError) and finished:
            say(f"{view.names[number]}: {result}")
        elif isinstance(result, LorakitError):
            complain(f"{view.names[number]}: {result}")
            exit_code = max(exit_code, result.exit_code)
        else:
            raise result
    if any(isinstance(result, StoppedError) for result in results):
        complain(f"{ending.reason()} {state_left()}")
    closing([result.run_dir for result in finished], _next_commands(finished))
    if exit_code:
        raise typer.Exit(exit_code)


def _refuse_sharding() -> None:
    from lorakit.distributed.sharding import is_sharding_requested

    if is_sharding_requested({}):
        raise ConfigError(
            "--together trains whole runs in each process: got a launcher that shards the model "
            "(FSDP), expected none. Leave --use_fsdp out."
        )


def _next_commands(finished: Sequence[TrainResult]) -> dict[str, str]:
    if not finished:
        return {}
    names = [shell_quote(result.run_dir) for result in finished]
    commands = {f"lorakit inspect {names[0]}": "shows its contents"}
    if len(names) > 1:
        commands[f"tensorboard --logdir {shell_quote(finished[0].run_dir.parent)}"] = (
            "shows the curves"
        )
    return commands
