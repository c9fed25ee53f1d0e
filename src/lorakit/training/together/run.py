"""Train several recipes on one base together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lorakit.distributed.launcher import launched_processes
from lorakit.errors import ConfigError
from lorakit.recipes.recipe import Recipe
from lorakit.training.run import TrainResult
from lorakit.training.stop_request import StopRequest
from lorakit.training.together.agreement import require_agreement
from lorakit.training.together.group import RunGroup


def train_together(
    recipes: Sequence[Recipe | str | Path],
    *,
    resume: bool = False,
    on_event: Callable[[int, str, dict[str, Any]], None] | None = None,
    stop: StopRequest | None = None,
) -> list[TrainResult | BaseException]:
    """Train several runs on one base in this process, with one pass for all in each step.

    Each run has its data order, adapter, dropout masks, optimizer, schedule, evaluation,
    checkpoints, directory and report, and the losses that it has alone, except for rounding. A run
    that fails or stops early leaves; the others go on.

    Args:
        recipes: Recipes with one base, or paths of their files; each with its own output.
        resume: Whether to continue the runs from their newest complete checkpoints; those without
            a directory begin.
        on_event: Called as `on_event(number of the run, name, payload)`; see `lorakit.train`.
        stop: Set it to stop all runs after their current optimizer steps.

    Returns: The result of each run, or what ended it.

    Raises:
        ConfigError: The recipes cannot run together; nothing has been written.
    """
    loaded = [r if isinstance(r, Recipe) else Recipe.load(r) for r in recipes]
    if not loaded:
        raise ConfigError("Cannot train together: got no recipe, expected at least one.")
    if launched_processes() > 1:
        raise ConfigError(
            "Cannot train together: got several processes, which a launcher (torchrun, accelerate "
            "launch) has started, expected one. Call this in a block of "
            "lorakit.distributed.own_runs.beside_others, in each with other runs."
        )
    require_agreement([recipe.with_absolute_paths() for recipe in loaded])
    group = RunGroup()
    stop = stop or StopRequest()
    runs = [
        group.add(
            recipe,
            resume=resume and Path(recipe.output).exists(),
            stop=stop,
            on_event=None if on_event is None else partial(on_event, number),
        )
        for number, recipe in enumerate(loaded)
    ]
    group.begin(*runs)
    try:
        for run in runs:
            run.turn.is_over.wait()
    except KeyboardInterrupt:
        stop.set()
        for run in runs:
            run.turn.is_over.wait()
    return [run.turn.result if run.turn.error is None else run.turn.error for run in runs]
