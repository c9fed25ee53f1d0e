"""How many trials should train together on this machine: measured, and bounded by memory."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from lorakit.errors import ConfigError, LorakitError, PlanError, StoppedError
from lorakit.files.atomic import scratch_directory
from lorakit.files.disks import size_text
from lorakit.planning import FakeRun, MemoryPlan, build_fake_run, bytes_together, plan_of
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.search_sections import MOST_TOGETHER
from lorakit.training.arguments import without_schedule
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
_GAIN = 0.9
"""Share of the time alone below which trials train together: a group also starts one process more
for each trial at once, and a measurement of a few steps errs by some hundredths."""


@dataclass(frozen=True)
class Room:
    """What a machine, or a GPU, has for trials.

    Attributes:
        trials: Number of trials that may train there at once.
        threads: Number of threads that compute there.
        processes: Number of processes in which trials can train there at once.
        threads_alone: Threads of a trial in its own process.
    """

    trials: int
    threads: int
    processes: int
    threads_alone: int

    def processes_for(self, size: int) -> int:
        """Return the largest number of processes of use, for so many trials in each."""
        return min(self.processes, math.ceil(self.trials / size))


@dataclass(frozen=True)
class GroupSize:
    """How many trials train in one process, in how many processes, and why."""

    size: int
    processes: int
    note: str


def words_of(size: int, processes: int) -> str:
    """Return how trials train, for a note."""
    return (
        f"{size} in one process" if processes == 1 else f"{size} in each of {processes} processes"
    )


def quickest_size(group: RunGroup, recipe: Recipe, room: Room) -> GroupSize:
    """Measure two, four, … trials in one process against trials in separate processes.

    Processes that train at once are assumed not to disturb each other, so the measurement favours
    many of them, and trials alone.

    Args:
        group: Group in which trials are measured; it keeps the base.
        recipe: Recipe of the trials.
        room: What there is for them.

    Returns: The numbers with the shortest time for a step of each trial; 1 if that is not clearly
        shorter than alone, or if two do not fit into memory or cannot train together.
    """
    layouts = _layouts(recipe, room)
    if not layouts:
        return GroupSize(1, 1, f"{ALONE}, as two do not fit together")
    with _threads(room.threads_alone):
        alone_s = _step_s(recipe) / room.processes
    best, best_s = GroupSize(1, 1, f"{ALONE}, which is as quick here"), alone_s * _GAIN
    for size, numbers in layouts.items():
        seconds: dict[int, float] = {}
        for processes in numbers:
            try:
                with _threads(max(1, room.threads // processes)):
                    seconds[processes] = _shared_step_s(group, recipe, size) / (size * processes)
            except LorakitError as error:  # a trial alone has none
                how = ALONE if best.size == 1 else words_of(best.size, best.processes)
                return replace(best, note=f"{how}, as {size} cannot train together: {error}")
        quickest = min(numbers, key=lambda processes: seconds[processes])
        if seconds[quickest] >= best_s:
            break
        best_s = seconds[quickest]
        note = f"{words_of(size, quickest)}, in {best_s / alone_s:.2f} of the time"
        best = GroupSize(size, quickest, note)
    return best


def require_together(recipe: Recipe, runs: int, processes: int = 1) -> None:
    """Refuse a number of trials that cannot train together.

    Args:
        recipe: Recipe of the trials.
        runs: Their number in a process.
        processes: Number of processes on the machine.

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
    needed, there = bytes_together([planned] * runs) * processes, planned.memory_bytes
    if there is not None and needed > there:
        raise PlanError(
            f"{runs * processes} trials do not fit together: they need {size_text(needed)}, "
            f"expected at most {size_text(there)}. Set `together` to a smaller number, or to auto."
        )


def _layouts(recipe: Recipe, room: Room) -> dict[int, tuple[int, ...]]:
    """Return the numbers of processes to measure by the number of trials in each, if they fit."""
    planned = _plan_or_none(build_fake_run(recipe))
    there = None if planned is None else planned.memory_bytes
    most = min(room.trials, MOST_TOGETHER)
    layouts: dict[int, tuple[int, ...]] = {}
    for size in (2**power for power in range(1, most.bit_length())):
        needed = 0 if planned is None else bytes_together([planned] * size)
        numbers = dict.fromkeys((room.processes_for(size), 1))
        fitting = tuple(n for n in numbers if there is None or n * needed <= there)
        if fitting:
            layouts[size] = fitting
    return layouts


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
    given = without_schedule(recipe.training)
    training = given | {"max_steps": _STEPS + 2, "eval_on_start": False}
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
