"""How many trials should train together on this machine: measured, and bounded by memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from lorakit.errors import ConfigError, LorakitError, PlanError, StoppedError
from lorakit.files.atomic import scratch_directory
from lorakit.files.disks import size_text
from lorakit.planning import FakeRun, MemoryPlan, build_fake_run, bytes_together, plan_of
from lorakit.recipes.recipe import Recipe
from lorakit.training.run import train
from lorakit.training.stop_request import StopRequest
from lorakit.training.together import RunGroup
from lorakit.training.together.agreement import find_unshared_part

_STEPS = 5
"""Steps of a measured run; the first warms up."""
ALONE = "each trial in its own process"
"""How trials train that do not train together."""
APART = "Set `together` to 1."
"""What to do about trials that cannot train together."""
_GAIN = 0.97
"""Share of the time alone below which trials train together."""


@dataclass(frozen=True)
class GroupSize:
    """How many trials train together, and why."""

    size: int
    note: str


def quickest_size(
    group: RunGroup, recipe: Recipe, most: int, threads_alone: int, at_once_alone: int
) -> GroupSize:
    """Measure two, four, … trials in one process against trials in separate processes.

    Args:
        group: Group in which trials are measured; it keeps the base.
        recipe: Recipe of the trials.
        most: Largest number that is of use.
        threads_alone: Threads of a trial in its own process.
        at_once_alone: Number of these processes that train at once. They are assumed not to
            disturb each other, so the measurement favours them.

    Returns: The number with the shortest time for a step of each trial; 1 if that is not clearly
        shorter than alone, or if two do not fit into memory or cannot train together.
    """
    sizes = _sizes(recipe, most)
    if not sizes:
        return GroupSize(1, f"{ALONE}, as two do not fit together")
    with _threads(threads_alone):
        alone_s = _step_s(recipe) / at_once_alone
    best, best_s = 1, alone_s * _GAIN
    for size in sizes:
        try:
            each_s = _shared_step_s(group, recipe, size) / size
        except LorakitError as error:  # a trial alone has none
            note = ALONE if best == 1 else f"{best} in one process"
            return GroupSize(best, f"{note}, as {size} cannot train together: {error}")
        if each_s >= best_s:
            break
        best, best_s = size, each_s
    if best == 1:
        return GroupSize(1, f"{ALONE}, which is as quick here")
    return GroupSize(best, f"{best} in one process, in {best_s / alone_s:.2f} of the time")


def require_together(recipe: Recipe, runs: int) -> None:
    """Refuse a number of trials that cannot train together.

    Args:
        recipe: Recipe of the trials.
        runs: Their number.

    Raises:
        ConfigError: The model of a trial cannot share its passes.
        PlanError: The trials need more memory than there is.
    """
    run = build_fake_run(recipe)
    problem = find_unshared_part(run.model, run.trainer.args)
    if problem is not None:
        raise ConfigError(f"Trials cannot train together: {problem}. {APART}")
    planned = _plan_or_none(run)
    if planned is None:
        return
    needed, there = bytes_together([planned] * runs), planned.memory_bytes
    if there is not None and needed > there:
        raise PlanError(
            f"{runs} trials do not fit together: they need {size_text(needed)}, expected at most "
            f"{size_text(there)}. Set `together` to a smaller number, or to auto."
        )


def _sizes(recipe: Recipe, most: int) -> list[int]:
    """Return the numbers to measure: powers of two that fit into memory."""
    planned = _plan_or_none(build_fake_run(recipe))
    sizes = [2**power for power in range(1, most.bit_length()) if 2**power <= most]
    if planned is None or planned.memory_bytes is None:
        return sizes
    return [s for s in sizes if bytes_together([planned] * s) <= planned.memory_bytes]


def _plan_or_none(run: FakeRun) -> MemoryPlan | None:
    """Return the plan of a run; None if its memory cannot be known without running it."""
    try:
        return plan_of(run)
    except PlanError:
        return None


def _step_s(recipe: Recipe) -> float:
    """Return the median seconds of a step of one run, which is stopped then."""
    times = _StepTimes()
    with scratch_directory("lorakit-together-") as folder, suppress(StoppedError):
        train(_measured_recipe(recipe, folder / "0"), on_event=times.on_event, stop=times.stop)
    return times.median()


def _shared_step_s(group: RunGroup, recipe: Recipe, runs: int) -> float:
    """Return the median seconds of a step of so many runs at once, which are stopped then."""
    times = _StepTimes()
    with scratch_directory("lorakit-together-") as folder:
        members = [
            group.add(
                _measured_recipe(recipe, folder / str(number)),
                on_event=times.on_event if number == 0 else None,
                stop=times.stop,
            )
            for number in range(runs)
        ]
        group.begin(*members)
        for member in members:
            member.turn.is_over.wait()  # before the directory of those after a failed one goes
        for member in members:
            with suppress(StoppedError):
                member.wait()
    return times.median()


def _measured_recipe(recipe: Recipe, output: Path) -> Recipe:
    """Return a recipe that trains some steps and neither evaluates nor reports."""
    training = {
        **recipe.training,
        "max_steps": _STEPS + 2,
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
        "load_best_model_at_end": False,
    }
    return recipe.with_changes({"training": training, "output": str(output)}, "a measurement")


class _StepTimes:
    """When the steps of a run ended; it is stopped after enough of them."""

    def __init__(self) -> None:
        self.stop = StopRequest()
        self._ends: list[float] = []

    def on_event(self, name: str, payload: dict[str, Any]) -> None:
        """Take the time of a step."""
        if name == "step" and not payload["logged"]:
            self._ends.append(time.perf_counter())
            if len(self._ends) > _STEPS:
                self.stop.set()

    def median(self) -> float:
        """Return the median seconds of a step after the first.

        Raises:
            PlanError: There are fewer than two steps.
        """
        seconds = [after - before for before, after in pairwise(self._ends)]
        if not seconds:
            raise PlanError(
                f"Cannot measure trials together: got {len(self._ends)} steps in an epoch, "
                "expected two or more. Set `together` to a number."
            )
        return statistics.median(seconds)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute with so many threads in this block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
