"""One trial, in a process of its own: an ordinary run that reports after every epoch."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorakit.config import TaskType
from lorakit.errors import ConfigError, TrainingError
from lorakit.recipes import checkpoints
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import TrialsConfig
from lorakit.training.evaluation_metrics import UnknownMetricError
from lorakit.training.run import train

EPOCH = "epoch"
"""Under which a report says after how many epochs it was made."""


class MetricError(ConfigError):
    """No trial reports the metric that trials are compared by."""


class Samples(Protocol):
    """Where the values of trials come from: a search space, or the grid of a study."""

    @property
    def where(self) -> str:
        """What to call its origin in an error."""
        ...

    def for_ray(self, algorithm: str) -> dict[str, Any]:
        """Return it as Ray Tune takes it."""
        ...

    def drawn(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return a trial's values by recipe key."""
        ...


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a search have in common."""

    recipe: Recipe
    """With absolute paths, the epochs of a whole trial and its share of the rows."""
    space: Samples
    settings: TrialsConfig
    trials_path: Path
    """Where the run directories of the trials lie."""
    base_path: Path
    """Where the trials map their bases from."""

    def recipe_of(self, values: dict[str, Any], name: str) -> Recipe:
        """Return the recipe of a trial.

        Args:
            values: By recipe key.
            name: The trial's, and of its run directory.
        """
        changes = {**values, "output": str(self.trials_path / name)}
        return self.recipe.with_changes(changes, self.space.where)


def trial_recipe(recipe: Recipe, settings: TrialsConfig, train_examples: int) -> Recipe:
    """Return a recipe as each trial takes it, before its own values are put in.

    A trial is evaluated and saved after every epoch, and keeps its best one.

    Args:
        recipe: The recipe that is searched.
        settings: Its search or study.
        train_examples: How many training rows it has.
    """
    training = {
        key: value
        for key, value in recipe.training.items()
        if key not in ("max_steps", "eval_steps", "save_steps", "num_train_epochs")
    }
    training |= {
        "num_train_epochs": epochs_of(recipe, settings),
        "eval_strategy": "epoch",
        # A model's loss has nothing else to be compared with; classes can be guessed.
        "eval_on_start": recipe.task in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM),
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "metric_for_best_model": settings.metric,
        "greater_is_better": not settings.is_minimized,
        "load_best_model_at_end": True,
    }
    recipe = recipe.with_absolute_paths()
    data = recipe.data.model_dump(mode="json")
    if settings.sample_fraction < 1:
        data["max_train_rows"] = max(1, round(settings.sample_fraction * train_examples))
    changes = {"training": training, "data": data}
    return recipe.with_changes({**changes, "search": None, "study": None}, "the recipe")


def epochs_of(recipe: Recipe, settings: TrialsConfig) -> int:
    """Return how many epochs a trial runs that goes to its end."""
    return settings.max_epochs or max(1, round(recipe.training.get("num_train_epochs", 3)))


def run_trial(sample: dict[str, Any], plan: TrialPlan) -> None:
    """Train one trial, or go on with it where its process was killed.

    Epochs that a killed search had saved are reported again and not trained again.

    Args:
        sample: What Ray drew.
        plan: What all trials have in common.

    Raises:
        ConfigError: The output is not on a file system that this machine shares.
        LorakitError: See `lorakit.training.train`.
    """
    from ray import tune

    gc.collect()  # the process may have run a trial before, whose trainer and model form a cycle
    require_shared_output(plan.trials_path)
    name = tune.get_context().get_trial_name()
    run = RunDirectory(plan.trials_path / str(name))
    recipe = plan.recipe_of(plan.space.drawn(sample), run.path.name)
    reporter = _Reporter(plan.settings.metric)
    is_there = run.recipe_file.exists()
    if is_there:
        for row in saved_evaluations(run):
            reporter.report(row)
        if run.is_finished:
            return
    try:
        train(recipe, resume=is_there, shared_base=plan.base_path, on_event=reporter)
    except UnknownMetricError as error:
        known = [f"eval_{name}" for name in error.known]
        raise _metric_error(plan.settings.metric, known) from None
    reporter.report_last()


def require_shared_output(path: Path) -> None:
    """Refuse to run where the search's output directory is not to be seen.

    Raises:
        ConfigError: It is not there.
    """
    if not path.is_dir():
        import socket

        raise ConfigError(
            f"No directory {path} on the machine {socket.gethostname()}: the trials of a cluster "
            "write into `output`, expected a directory that all its machines share. Set `output` "
            "to one on a shared file system."
        )


def saved_evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the evaluations of a run that need not be made again, oldest first."""
    rows = [row for row in run.metrics() if row.get("event") == "evaluation" and row["step"] > 0]
    if run.is_finished:
        return rows
    newest = checkpoints.newest_complete(run.path)
    last = -1 if newest is None else checkpoints.step_of(newest)
    return [row for row in rows if row["step"] <= last]


class _Reporter:
    """Takes a run's events and reports each epoch once its checkpoint is on the disk.

    The last epoch is reported when the whole run is: whoever stops a trial there stops nothing.
    """

    def __init__(self, metric: str):
        self._metric = metric
        self._row: dict[str, Any] = {}
        self._is_last = False

    def __call__(self, event: str, payload: dict[str, Any]) -> None:
        if event == "evaluation":
            self._row = {"step": payload["step"], EPOCH: payload["epoch"], **payload["metrics"]}
            self._is_last = payload["step"] >= payload["max_steps"]
            _require_metric(self._metric, self._row)
        elif event == "checkpoint" and self._row and not self._is_last:
            self.report_last()

    def report_last(self) -> None:
        """Report what was evaluated last, if it is not reported yet."""
        row, self._row = self._row, {}
        if row:
            self.report(row)

    def report(self, row: dict[str, Any]) -> None:
        """Report an evaluation; a trial that is stopped does not come back from here."""
        from ray import tune

        _require_metric(self._metric, row)
        values = {key: value for key, value in row.items() if key.startswith("eval_")}
        tune.report({**values, EPOCH: max(1, round(row["epoch"])), "step": row["step"]})


def _require_metric(metric: str, row: dict[str, Any]) -> None:
    if metric not in row:
        raise _metric_error(metric, [key for key in row if key.startswith("eval_")])
    if row[metric] is None or not math.isfinite(row[metric]):
        raise TrainingError(
            f"The metric '{metric}' is no number after epoch {row['epoch']:g}: got {row[metric]}. "
            "Try a lower training.learning_rate."
        )


def _metric_error(metric: str, known: list[str]) -> MetricError:
    return MetricError(
        f"No trial reports the metric '{metric}': the evaluation has {', '.join(known)}. "
        "Set `metric` to one of them."
    )
