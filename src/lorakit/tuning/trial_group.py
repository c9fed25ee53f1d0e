"""A process that trains trials together.

Whoever calls it imports this file: so torch and the trainer are imported where it computes, not
here, for the relays of Ray Tune to stay small.
"""

from __future__ import annotations

import gc
import queue
import threading
from typing import TYPE_CHECKING, Any

from lorakit.errors import StoppedError

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe
    from lorakit.training.callbacks import EventHandler
    from lorakit.tuning.group_size import Room
    from lorakit.tuning.trial import TrialPlan


class TrialGroup:
    """Trains trials on one base together; as a Ray actor, with several calls at a time.

    Each trial is a run of one `RunGroup`: it joins and leaves between steps.
    """

    def __init__(self, plan: TrialPlan, threads: int):
        """Create the group.

        Args:
            plan: Plan that all trials share.
            threads: Number of threads that compute.
        """
        import torch

        from lorakit.training.together import RunGroup
        from lorakit.tuning.group_size import APART

        torch.set_num_threads(threads)
        self._plan = plan
        self._group = RunGroup(APART)
        self._places = 0
        self._taken = 0
        self._changing = threading.Condition()
        self._trials: dict[str, _Trial] = {}

    def open(self, places: int) -> None:
        """Set how many trials train at once."""
        self._places = places

    def measure_size(self, room: Room) -> tuple[int, int, str]:
        """Return how many trials should train in one process, in how many processes, and why."""
        from lorakit.tuning.group_size import quickest_size

        found = quickest_size(self._group, self._plan.recipe, room)
        gc.collect()
        return found.size, found.processes, found.note

    def require_size(self, size: int, processes: int) -> None:
        """Refuse a number of trials in each process, and of processes.

        Raises:
            ConfigError: The model of a trial cannot share its passes.
            PlanError: So many do not fit into memory.
        """
        from lorakit.tuning.group_size import require_together

        require_together(self._plan.recipe, size, processes)

    def take_place(self) -> bool:
        """Take a place for a trial, if one is free; `train` gives it back."""
        with self._changing:
            is_free = self._taken < self._places
            self._taken += is_free
            return is_free

    def train(self, sample: dict[str, Any], name: str) -> None:
        """Train a trial to its end, with the others.

        Args:
            sample: Sample of Ray Tune.
            name: Name of the trial.

        Raises:
            LorakitError: See `train_trial`.
        """
        from lorakit.tuning.trial import train_trial

        trial = _Trial()
        with self._changing:
            self._trials[name] = trial
            self._changing.notify_all()

        def training(recipe: Recipe, *, resume: bool, on_event: EventHandler) -> None:
            run = self._group.start(recipe, resume=resume, on_event=on_event, stop=trial.request)
            run.wait()

        try:
            train_trial(sample, name, self._plan, training, trial.reports.put)
        except StoppedError:
            pass  # its checkpoint is saved, and Ray has stopped it
        finally:
            trial.reports.put(None)
            with self._changing:
                self._taken -= 1
            gc.collect()  # trainer and model form a cycle

    def next_report(self, name: str) -> dict[str, Any] | None:
        """Wait for the next report of a trial; None is its end."""
        return self._trial(name).reports.get()

    def stop(self, name: str) -> None:
        """Stop a trial after its current step; no effect if it is over."""
        self._trial(name).request.set()

    def _trial(self, name: str) -> _Trial:
        """Return a trial; calls may overtake that of `train`."""
        with self._changing:
            self._changing.wait_for(lambda: name in self._trials)
            return self._trials[name]


class _Trial:
    """What a trial that trains shares with the calls about it."""

    def __init__(self) -> None:
        from lorakit.training.stop_request import StopRequest

        self.request = StopRequest()
        self.reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
