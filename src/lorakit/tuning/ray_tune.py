"""Run trials with Ray Tune: schedule them, stop poor ones early, resume a killed search.

Only this file uses the scheduling of Ray Tune.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from lorakit.libraries.logs import muting_libraries
from lorakit.libraries.ray_cluster import Machine, require_resources
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import SearchConfig, TrialsConfig
from lorakit.tuning.groups import Groups, open_groups
from lorakit.tuning.records import TrialRecord
from lorakit.tuning.relay import relay_trial
from lorakit.tuning.trial import (
    EPOCH,
    TrialPlan,
    epochs_of,
    read_evaluations,
    report_of,
    run_trial,
)
from lorakit.tuning.trial_events import (
    OnChange,
    ReportingError,
    StopUseless,
    listening,
)

_NAME = "search"
_NUMBER = "number"

_SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # largest age of Ray's record when a search is killed
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run directories have the curves
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

_SHARES = 10_000
"""Smallest part of a resource that Ray counts."""

_RELAY = {"memory": 2.0**20}
"""What a process that trains nothing takes; Ray wants something, and groups take all processors."""

_MUTED = ("ray", "ray.tune", "ray.air", "optuna")
"""Loggers; the records of failed trials say why they failed."""


def run_trials(
    plan: TrialPlan,
    settings: SearchConfig,
    trials: int,
    machines: list[Machine],
    path: Path,
    on_change: OnChange,
    on_groups: Callable[[Groups], None],
) -> list[TrialRecord]:
    """Run a search to its end, from the start or from where it was killed.

    Args:
        plan: Plan that all trials share.
        settings: How values are chosen and trials are stopped.
        trials: Number of trials.
        machines: Machines of the running cluster.
        path: Directory of Ray's record; an existing record is resumed.
        on_change: Called with all records and the one that changed.
        on_groups: Called with the processes in which trials train together, if they do.

    Returns:
        A record of each trial, in the order of sampling.

    Raises:
        ClusterError: A trial requests more than any machine has.
        MetricError: No trial reports the metric.
        Exception: What `on_change` raised; the search can be resumed.
    """
    gpus = require_trial_resources(settings, machines)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with (
        open_groups(plan, settings, trials, machines, gpus > 0) as groups,
        listening(plan, on_change) as listener,
        muting_libraries(*_MUTED, below=logging.CRITICAL),
    ):
        trainable, at_once = _trainable(plan, settings, gpus, groups, machines)
        if groups is not None:
            on_groups(groups)
        is_resumed = _can_restore(path / _NAME, settings)
        if not is_resumed:  # trials that have begun report what is in their run directories
            shutil.rmtree(path / _NAME, ignore_errors=True)
        try:
            # A Tuner would resume with what it was first given, such as the number at once.
            tune.run(
                trainable,
                name=_NAME,
                storage_path=str(path),
                resume="AUTO+ERRORED" if is_resumed else False,
                config=plan.space.for_ray(settings.algorithm),
                num_samples=1 if settings.algorithm == "grid" else trials,
                metric=settings.metric,
                mode=_mode(settings),
                search_alg=_sampler(plan, settings, at_once or sys.maxsize),
                scheduler=_scheduler(plan, settings),
                callbacks=[listener],
                stop=StopUseless(),
                reuse_actors=True,  # importing torch takes longer than a short epoch
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
                raise_on_failed_trial=False,
                verbose=0,
            )
        except ReportingError as failure:
            raise failure.__cause__ or failure from None
    if listener.metric_error is not None:
        raise listener.metric_error
    return listener.records()


def _can_restore(experiment: Path, settings: SearchConfig) -> bool:
    """Return whether Ray's record is whole.

    Ray copies each file into it, so a kill or a full disk leaves parts of them. Of such a record
    Ray would log that it cannot be restored, and end without trials.
    """
    sampled = ("basic-variant-state-*",)
    if settings.algorithm == "tpe":
        sampled = ("search_gen_state-*", "searcher-state-*")
    try:
        json.loads(max(experiment.glob("experiment_state-*")).read_text(encoding="utf-8"))
        for pattern in sampled:
            pickle.loads(max(experiment.glob(pattern)).read_bytes())
    except Exception:  # a missing file, and a damaged pickle raises anything
        return False
    return True


def _trainable(
    plan: TrialPlan,
    settings: TrialsConfig,
    gpus: float,
    groups: Groups | None,
    machines: list[Machine],
) -> tuple[Any, int | None]:
    """Return what Ray Tune runs for each trial, and how many at once; None is as many as fit."""
    if groups is None or not groups.actors:
        alone = tune.with_parameters(run_trial, plan=plan)
        resources = {"cpu": settings.cpus_per_trial, "gpu": gpus}
        if settings.max_concurrent is not None and len(machines) == 1:
            # The samplers' limit does not hold for failed trials that Ray starts again: each takes
            # its share of what Ray calls node:ADDRESS, of which a machine has one.
            share = math.floor(_SHARES / settings.max_concurrent) / _SHARES
            resources[f"node:{machines[0].address}"] = share
        return tune.with_resources(alone, resources), settings.max_concurrent
    relay = tune.with_parameters(relay_trial, groups=groups.actors)
    relay.__name__ = run_trial.__name__  # a record is resumed by the name, together or not
    at_once = min(groups.places, settings.max_concurrent or groups.places)
    return tune.with_resources(relay, _RELAY), at_once


def require_trial_resources(settings: TrialsConfig, machines: list[Machine]) -> float:
    """Refuse trials that fit on no machine, and return the number of GPUs for each.

    Raises:
        ClusterError: A trial requests more than any machine has.
    """
    gpus = settings.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if any(machine.gpus >= 1 for machine in machines) else 0.0
    what = "a trial (cpus_per_trial and gpus_per_trial)"
    require_resources(machines, cpus=settings.cpus_per_trial, gpus=gpus, what=what)
    return gpus


def _mode(settings: SearchConfig) -> str:
    return "min" if settings.is_minimized else "max"


def _sampler(plan: TrialPlan, settings: SearchConfig, at_once: int) -> Any:
    """Return the source of values, for so many trials at once."""
    seed = int(plan.recipe.training.get("seed", 42))
    if settings.algorithm != "tpe":
        return _LimitedVariants(max_concurrent=at_once, random_state=seed)
    optuna = _NumberedOptuna(metric=settings.metric, mode=_mode(settings), seed=seed)
    return _LimitedSearcher(optuna, max_concurrent=at_once)


def _scheduler(plan: TrialPlan, settings: SearchConfig) -> Any:
    if settings.asha is None:
        return None
    return _ResumedAsha(
        plan.trials_path,
        time_attr=EPOCH,
        max_t=epochs_of(plan.recipe, settings),
        grace_period=min(settings.asha.grace_period, epochs_of(plan.recipe, settings)),
        reduction_factor=settings.asha.reduction_factor,
    )


class _ResumedAsha(ASHAScheduler):
    """ASHA that reads how good the trials were that ended before a restart.

    Ray's record lacks it: the next trials would be compared with each other alone.
    """

    def __init__(self, trials_path: Path, **settings: Any):
        super().__init__(**settings)
        self._trials_path = trials_path

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial with its results if it has ended; others report theirs again."""
        super().on_trial_add(tune_controller, trial)
        if trial.status == "TERMINATED":
            for row in read_evaluations(RunDirectory(self._trials_path / str(trial))):
                self.on_trial_result(tune_controller, trial, report_of(row))


class _LimitedVariants(BasicVariantGenerator):
    """Random values and grids; as many at once as this call says, not as its record."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Take the state of a record."""
        super().set_state(state | {"max_concurrent": self.max_concurrent})


class _LimitedSearcher(ConcurrencyLimiter):
    """A sampler that learns from trials; as many at once as this call says."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Take the state of a record."""
        super().set_state(state | {"max_concurrent": self.max_concurrent})


class _NumberedOptuna(OptunaSearch):
    """Optuna's TPE with numbered samples, so that a resumed search continues the count."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return a sample."""
        sample = super().suggest(trial_id)
        if sample is None:
            return None
        study: Any = self._ot_study
        return {**sample, _NUMBER: len(study.trials)}


def _trial_name(trial: Any) -> str:
    """Return the name of a trial: its number, from 1."""
    number = trial.config.get(_NUMBER) or int(trial.trial_id.rpartition("_")[2]) + 1
    return f"trial-{number:03d}"
