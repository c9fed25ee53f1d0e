"""Plan a run before `lorakit train` loads anything, and refuse one that cannot fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorakit.cli.launched import is_launched_in_parallel
from lorakit.cli.views.console import say, size_text
from lorakit.errors import LorakitError, PlanError

if TYPE_CHECKING:
    from lorakit.planning import MemoryPlan
    from lorakit.recipes.recipe import Recipe


def plan_first(
    recipe: Recipe, command: str, *, force: bool = False, processes: int | None = None
) -> MemoryPlan | None:
    """Print the plan of a run in one line.

    Args:
        recipe: Recipe to train.
        command: Command to repeat with --force.
        force: Whether to continue even if the run does not fit.
        processes: Number of processes; None for those that a launcher has started, or one.

    Returns: The plan, or None if planning fails; training then reports the error, if any.

    Raises:
        PlanError: The run does not fit.
        OutputExistsError: `output` is not empty.
    """
    from lorakit.distributed.processes import process_count, run_on_main
    from lorakit.recipes.run_directory import RunDirectory

    run_on_main(lambda: RunDirectory.refuse_occupied(recipe.output))
    plan = run_on_main(lambda: _plan_or_report(recipe, processes or process_count()))
    if plan is None:
        return None
    from lorakit.cli.views.plan import summary

    say(summary(plan))
    if plan.fits is False and not force:
        plan_command = command.replace("lorakit train", "lorakit plan", 1)
        raise PlanError(
            f"This run cannot fit: it needs {size_text(plan.needed_bytes)} at its peak, expected "
            f"at most {size_text(plan.memory_bytes or 0)}. To see what would make it fit: "
            f"{plan_command}. To try anyway: {command} --force"
        )
    return plan


def plan_together_first(recipes: Sequence[Recipe], *, force: bool = False) -> None:
    """Print the plan of runs that train together in one line.

    Args:
        recipes: Their recipes.
        force: Whether to continue even if they do not fit.

    Raises:
        PlanError: They do not fit.
        OutputExistsError: An `output` is not empty.
    """
    from lorakit.planning import bytes_together
    from lorakit.recipes.run_directory import RunDirectory

    for recipe in recipes:
        RunDirectory.refuse_occupied(recipe.output)
    plans = [found for recipe in recipes if (found := _plan_or_report(recipe, 1)) is not None]
    if len(plans) < len(recipes):
        return
    needed, there = bytes_together(plans), plans[0].memory_bytes
    alone = size_text(sum(plan.needed_bytes for plan in plans))
    of = "" if there is None else f" of {size_text(there)}"
    say(f"Planned: {size_text(needed)}{of} at the peak; {alone} in a process for each run")
    if there is not None and needed > there and not force:
        raise PlanError(
            f"These {len(plans)} runs cannot fit together: they need {size_text(needed)} at their "
            f"peak, expected at most {size_text(there)}. Train fewer at a time, or one after "
            "another without --together; to try anyway, add --force."
        )


def _plan_in_separate_process(recipe: Recipe, processes: int) -> MemoryPlan | None:
    from lorakit.distributed.sharding import is_sharding_requested
    from lorakit.planning.separate_process import plan_in_separate_process

    if is_sharding_requested(recipe.training):  # possibly by the launcher
        recipe = recipe.with_changes({"training.fsdp": True}, "the plan")
    return plan_in_separate_process(recipe, processes)


def _plan_or_report(recipe: Recipe, processes: int) -> MemoryPlan | None:
    if is_launched_in_parallel():
        return _plan_in_separate_process(recipe, processes)
    from lorakit.planning import plan

    try:
        return plan(recipe, processes=processes, download=True)
    except PlanError as error:
        say(str(error))
    except LorakitError:  # training raises the same
        pass
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        say(f"This run could not be planned ({type(error).__name__}: {text}); training continues.")
    return None
