"""Processes in which trials train together: one for each GPU, or some for each machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lorakit.errors import ConfigError
from lorakit.libraries.ray_cluster import Machine
from lorakit.recipes.search_sections import MOST_TOGETHER, TrialsConfig
from lorakit.training.together.agreement import find_fixed_keys, find_unshared_settings
from lorakit.tuning.trial import TrialPlan

_LITTLE = 0.001
"""Share of what Ray calls node:ADDRESS, of which each machine has one; it keeps a group there."""


@dataclass(frozen=True)
class Groups:
    """Open groups, and how many trials train in each."""

    actors: tuple[Any, ...]
    """Handles of `TrialGroup` actors; none if each trial trains in its own process."""
    size: int
    note: str

    @property
    def places(self) -> int:
        """Number of trials that train at once."""
        return self.size * len(self.actors)


@contextmanager
def open_groups(
    plan: TrialPlan, settings: TrialsConfig, trials: int, machines: list[Machine], on_gpus: bool
) -> Iterator[Groups | None]:
    """Start the processes in which trials train together, and end them after the block.

    Args:
        plan: Plan that all trials share.
        settings: How trials are run; `together` says how many share a process.
        trials: Number of trials.
        machines: Machines of the running cluster.
        on_gpus: Whether trials train on GPUs.

    Yields: The groups, without actors if a measurement has found that trials should stay apart;
        None if the settings ask for a process for each.

    Raises:
        ConfigError: The trials differ in what they would share, or cannot share it.
        PlanError: That many trials do not fit into memory.
    """
    if settings.together == 1:
        yield None
        return
    import ray

    from lorakit.tuning.group_size import ALONE, APART, Room, words_of
    from lorakit.tuning.trial_group import TrialGroup

    problems = _problems(plan)
    if problems and settings.together != "auto":
        raise ConfigError(f"Trials cannot train together: {'; '.join(problems)}. {APART}")
    if problems:
        yield Groups((), 1, f"{ALONE}, as they cannot train together: {'; '.join(problems)}")
        return

    at_once = min(trials, settings.max_concurrent or trials)
    places = _places(machines, on_gpus)[:at_once]
    here = math.ceil(at_once / len(places))
    remote: Any = ray.remote(TrialGroup)

    def start(place: Machine) -> Any:
        options = {
            "num_cpus": place.cpus,
            "num_gpus": place.gpus,
            "resources": {f"node:{place.address}": _LITTLE},
            "max_concurrency": 3 * min(here, MOST_TOGETHER) + 4,
        }
        return remote.options(**options).remote(plan, int(place.cpus))

    first = places[0]
    alone = 1 if first.gpus else max(1, int(first.cpus // settings.cpus_per_trial))
    room = Room(here, int(first.cpus), min(alone, here), max(1, int(settings.cpus_per_trial)))
    actors: list[Any] = []
    try:
        if settings.together == "auto":
            actors.append(start(first))
            size, processes, note = _result(actors[0].measure_size.remote(room))
            if processes > 1:  # each has a part of the processors, which the first one holds
                ray.kill(actors.pop())
        else:
            size = min(settings.together, here)
            processes = room.processes_for(size)
            note = words_of(size, processes)
        if size > 1:
            shares = [share for place in places for share in _split(place, processes)]
            actors += [start(share) for share in shares[len(actors) :]]
            if settings.together != "auto":
                _result(actors[0].require_size.remote(size, processes))
            _result([actor.open.remote(size) for actor in actors])
            yield Groups(tuple(actors), size, note)
            return
    finally:
        for actor in actors:
            ray.kill(actor)
    yield Groups((), size, note)


def _problems(plan: TrialPlan) -> list[str]:
    """Return what in their recipe and values keeps trials from training together."""
    varied = find_fixed_keys(plan.recipe, plan.space.keys)
    problems = [f"the recipe has {reason}" for reason in find_unshared_settings(plan.recipe)]
    if varied:
        keys = ", ".join(varied)
        problems.append(f"{plan.space.where} varies {keys}, in which runs on one base must agree")
    return problems


def _result(call: Any) -> Any:
    """Return the result of calls, or raise their error without Ray's wrapper."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(call)
    except RayTaskError as failure:
        raise failure.cause from None


def _places(machines: list[Machine], on_gpus: bool) -> list[Machine]:
    """Return what each group may have: a GPU and its part of a machine, or a machine."""
    if on_gpus:
        return [
            replace(machine, cpus=max(1.0, machine.cpus // int(machine.gpus)), gpus=1.0)
            for machine in machines
            for _ in range(int(machine.gpus))
        ]
    return [replace(machine, gpus=0.0) for machine in machines if machine.cpus >= 1]


def _split(place: Machine, processes: int) -> list[Machine]:
    """Return equal parts of a place, each with a processor or more."""
    number = min(processes, int(place.cpus))
    return [replace(place, cpus=max(1.0, place.cpus // number))] * number
