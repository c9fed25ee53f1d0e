"""One trial in a separate process: a run that reports after every epoch."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lorakit.config import TaskType
from lorakit.errors import ConfigError, TrainingError
from lorakit.recipes import checkpoints
from lorakit.recipes.recipe import Recipe, changed_keys, load_written_recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import TrialsConfig
from lorakit.training.evaluation_metrics import UnknownMetricError
from lorakit.training.run import train

EPOCH = "epoch"
"""Key of the number of epochs in a report."""


class MetricError(ConfigError):
    """No trial reports the metric that trials are compared by."""


class Samples(Protocol):
    """Source of the values of trials: a search space, or the grid of a study."""

    @property
    def where(self) -> str:
        """Name of its source in an error."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Recipe keys that vary."""
        ...

    def for_ray(self, algorithm: str) -> dict[str, Any]:
        """Return the samples for Ray Tune."""
        ...

    def trial_values(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a trial by recipe key."""
        ...


@dataclass(frozen=True)
class TrialPlan:
    """Plan that all trials of a search share."""

    recipe: Recipe
    """Recipe with absolute paths, the epochs of a whole trial and its number of examples."""
    space: Samples
    settings: TrialsConfig
    trials_path: Path
    """Directory of the run directories of the trials."""
    base_path: Path
    """Directory of the files that the trials map their bases from."""

    def recipe_of(self, values: dict[str, Any], name: str) -> Recipe:
        """Return the recipe of a trial.

        Args:
            values: Values by recipe key.
            name: Name of the trial and of its run directory.
        """
        changes = {**values, "output": str(self.trials_path / name)}
        return self.recipe.with_changes(changes, self.space.where)


def trial_recipe(recipe: Recipe, settings: TrialsConfig, train_examples: int) -> Recipe:
    """Return the recipe of trials, before the values of each are inserted.

    A trial is evaluated and saved after every epoch, and keeps its best one.

    Args:
        recipe: Recipe that is searched.
        settings: Settings of the search or study.
        train_examples: Number of training examples.
    """
    if recipe.data.streaming:
        raise ConfigError(
            "Trials run for epochs, which a stream does not have: got data.streaming=true, "
            "expected false. Leave it out."
        )
    training = schedule_of(recipe, settings) | {
        # A loss needs the model before training as reference; classes can be guessed.
        "eval_on_start": recipe.task in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM),
        "save_total_limit": 1,
    }
    recipe = recipe.with_absolute_paths()
    data = recipe.data.model_dump(mode="json")
    if settings.sample_fraction < 1:
        data["max_train_rows"] = max(1, round(settings.sample_fraction * train_examples))
    changes: dict[str, Any] = {"training": training, "data": data}
    evaluation = {"compare_with_base": False}  # all trials have the same base
    changes |= {"evaluation": evaluation, "search": None, "study": None}
    return recipe.with_changes(changes, "the recipe")


def schedule_of(recipe: Recipe, settings: TrialsConfig) -> dict[str, Any]:
    """Return the `training:` section of a trial that is not stopped.

    It runs for whole epochs, and keeps the best one by the metric that trials are compared by. A
    recipe with this section repeats the trial, whatever schedule the searched one has.
    """
    kept = {
        key: value
        for key, value in recipe.training.items()
        if key not in ("max_steps", "eval_steps", "eval_delay", "save_steps")
    }
    return kept | {
        "num_train_epochs": epochs_of(recipe, settings),
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "metric_for_best_model": settings.metric,
        "greater_is_better": not settings.is_minimized,
        "load_best_model_at_end": True,
    }


def chosen_recipe(
    recipe: Recipe, settings: TrialsConfig, changes: Mapping[str, Any], name: str
) -> Recipe:
    """Return the recipe that trains chosen values on all examples, from any working directory.

    Args:
        recipe: Recipe that was searched.
        settings: Settings of the search or study.
        changes: The chosen values by dotted key.
        name: Name of the run directory below that of the search.
    """
    output = str(Path(recipe.output).absolute() / name)
    fixed = {"training": schedule_of(recipe, settings), **changes}
    fixed |= {"output": output, "search": None, "study": None}
    return recipe.with_absolute_paths().with_changes(fixed, f"the {name} values")


def epochs_of(recipe: Recipe, settings: TrialsConfig) -> int:
    """Return the number of epochs of a trial that is not stopped."""
    return settings.max_epochs or max(1, round(recipe.training.get("num_train_epochs", 3)))


def run_trial(sample: dict[str, Any], plan: TrialPlan) -> None:
    """Train one trial in this process of Ray Tune, or resume it if its process was killed.

    Args:
        sample: Sample of Ray Tune.
        plan: Plan that all trials share.

    Raises:
        ConfigError: The output is not on a file system that this machine shares.
        LorakitError: See `lorakit.training.train`.
    """
    import torch
    from ray import tune

    # Ray sets OMP_NUM_THREADS unless the environment has it; then trials would share processors.
    torch.set_num_threads(max(1, int(plan.settings.cpus_per_trial)))
    gc.collect()  # the process may have run another trial, whose trainer and model form a cycle
    name = str(tune.get_context().get_trial_name())
    train_trial(sample, name, plan, partial(train, shared_base=plan.base_path), tune.report)


def train_trial(
    sample: dict[str, Any],
    name: str,
    plan: TrialPlan,
    training: Callable[..., Any],
    report: Callable[[dict[str, Any]], Any],
) -> None:
    """Train one trial, or resume it if its process was killed.

    Epochs that a killed search has saved are reported again, but not trained again.

    Args:
        sample: Sample of Ray Tune.
        name: Name of the trial.
        plan: Plan that all trials share.
        training: Trains a recipe, with the arguments `resume` and `on_event` of `train`.
        report: Called with the metrics of each epoch when its checkpoint is on disk.

    Raises:
        ConfigError: The output is not on a file system that this machine shares.
        LorakitError: See `lorakit.training.train`.
    """
    require_shared_output(plan.trials_path)
    run = RunDirectory(plan.trials_path / name)
    recipe = plan.recipe_of(plan.space.trial_values(sample), run.path.name)
    reporter = _Reporter(plan.settings.metric, report)
    exists = run.recipe_file.exists()
    if exists and _has_other_values(run, recipe, plan.space.keys):
        shutil.rmtree(run.path)
        exists = False
    if exists:
        for row in read_evaluations(run):
            reporter.report(row)
        if run.is_finished:
            return
    try:
        training(recipe, resume=exists, on_event=reporter)
    except UnknownMetricError as error:
        known = [f"eval_{name}" for name in error.known]
        raise _metric_error(plan.settings.metric, known) from None
    reporter.report_last()


def _has_other_values(run: RunDirectory, recipe: Recipe, keys: Sequence[str]) -> bool:
    """Return whether a run was sampled after the last record that Ray saved of a killed search.

    Trials that have ended in another order since then can lead to another sample.
    """
    changed = changed_keys(load_written_recipe(run.recipe_file), recipe)
    return any(f"{name}.".startswith(f"{key}.") for name in changed for key in keys)


def require_shared_output(path: Path) -> None:
    """Refuse to run on a machine without the output directory of the search.

    Raises:
        ConfigError: The directory does not exist.
    """
    if not path.is_dir():
        import socket

        raise ConfigError(
            f"No directory {path} on the machine {socket.gethostname()}: the trials of a cluster "
            "write into `output`, expected a directory that all its machines share. Set `output` "
            "to one on a shared file system."
        )


def read_evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the evaluations of a run that need not be repeated, oldest first."""
    rows = [row for row in run.metrics() if row.get("event") == "evaluation" and row["step"] > 0]
    if run.is_finished:
        return rows
    newest = checkpoints.newest_complete(run.path)
    last = -1 if newest is None else checkpoints.step_of(newest)
    return [row for row in rows if row["step"] <= last]


class _Reporter:
    """Reports each epoch of a run when its checkpoint is on disk.

    The last epoch is reported at the end of the run, when stopping the trial has no effect.
    """

    def __init__(self, metric: str, report: Callable[[dict[str, Any]], Any]):
        self._metric = metric
        self._report = report
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
        """Report the last evaluation, unless it is reported already."""
        row, self._row = self._row, {}
        if row:
            self.report(row)

    def report(self, row: dict[str, Any]) -> None:
        """Report an evaluation; does not return if Ray stops the trial in this process."""
        _require_metric(self._metric, row)
        self._report(report_of(row))


def report_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Ray Tune is told of an evaluation."""
    values = {key: value for key, value in row.items() if key.startswith("eval_")}
    return {**values, EPOCH: max(1, round(row["epoch"])), "step": row["step"]}


def _require_metric(metric: str, row: dict[str, Any]) -> None:
    if metric not in row:
        raise _metric_error(metric, [key for key in row if key.startswith("eval_")])
    if row[metric] is None or not math.isfinite(row[metric]):
        raise TrainingError(
            f"The metric '{metric}' is not a number after epoch {row['epoch']:g}: got "
            f"{row[metric]}. Try a lower training.learning_rate."
        )


def _metric_error(metric: str, known: list[str]) -> MetricError:
    return MetricError(
        f"No trial reports the metric '{metric}': the evaluation has {', '.join(known)}. "
        "Set `metric` to one of them."
    )
