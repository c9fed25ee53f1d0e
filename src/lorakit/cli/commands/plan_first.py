"""What `lorakit train` does before it loads anything: plan, and refuse what cannot fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.cli.launched import is_one_of_several
from lorakit.cli.views.console import say, size_text
from lorakit.errors import LorakitError, PlanError

if TYPE_CHECKING:
    from lorakit.planning import MemoryPlan
    from lorakit.recipes.recipe import Recipe


def plan_first(
    recipe: Recipe, command: str, *, force: bool = False, processes: int | None = None
) -> MemoryPlan | None:
    """Print a run's plan in one line.

    Args:
        recipe: What is to be trained.
        command: The command to repeat with --force.
        force: Whether to go on even if it does not fit.
        processes: How many there will be; None for those a launcher has started, or one.

    Returns: The plan, or None where there is none; training then says what is wrong, if anything.

    Raises:
        PlanError: It does not fit.
        OutputExistsError: `output` holds something.
    """
    from lorakit.distributed.processes import process_count, run_on_main
    from lorakit.recipes.run_directory import RunDirectory

    run_on_main(lambda: RunDirectory.refuse_occupied(recipe.output))
    plan = run_on_main(lambda: _planned(recipe, processes or process_count()))
    if plan is None:
        return None
    from lorakit.cli.views.plan import summary

    say(summary(plan))
    if plan.fits is False and not force:
        plan_command = command.replace("lorakit train", "lorakit plan", 1)
        raise PlanError(
            f"This run cannot fit: it needs {size_text(plan.needed_bytes)} at its peak, and there "
            f"are {size_text(plan.memory_bytes or 0)}. To see what would make it fit: "
            f"{plan_command}. To try all the same: {command} --force"
        )
    return plan


def _planned_in_separate_process(recipe: Recipe, processes: int) -> MemoryPlan | None:
    from lorakit.distributed.sharding import is_sharding_requested
    from lorakit.planning.separate_process import plan_in_separate_process

    if is_sharding_requested(recipe.training):  # by the launcher, perhaps
        recipe = recipe.with_changes({"training.fsdp": True}, "the plan")
    return plan_in_separate_process(recipe, processes)


def _planned(recipe: Recipe, processes: int) -> MemoryPlan | None:
    if is_one_of_several():
        return _planned_in_separate_process(recipe, processes)
    from lorakit.planning import plan

    try:
        return plan(recipe, processes=processes, download=True)
    except PlanError as error:
        say(str(error))
    except LorakitError:  # training will say the same
        pass
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        say(f"This run could not be planned ({type(error).__name__}: {text}); training goes on.")
    return None
