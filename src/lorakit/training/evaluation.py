"""Evaluate a trained adapter on validation data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lorakit.adapters import Adapter, fit_vocabulary
from lorakit.adapters.inference_settings import SETTINGS_FILE, InferenceSettings
from lorakit.adapters.peft_files.files import CONFIG_FILE
from lorakit.analysis.verdict import Verdict
from lorakit.config import SINGLE_LABEL, LoraConfig, TaskType
from lorakit.data.splits import load_splits, load_validation
from lorakit.errors import ConfigError, MissingFileError
from lorakit.files.atomic import scratch_directory
from lorakit.files.disks import reporting_disk_errors
from lorakit.inference.loaded import (
    TASKS_WITH_LABELS,
    locate_adapter,
    require_weights_of_training,
    saved_tokenizer,
)
from lorakit.injection import Injection, add_adapter, disable_adapters, set_adapter
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory, find_adapter
from lorakit.training.arguments import without_schedule
from lorakit.training.callbacks import EventHandler, ignore_event
from lorakit.training.evaluation_metrics import model_metrics
from lorakit.training.objectives.reference import REFERENCE
from lorakit.training.setup import Setup, prepare
from lorakit.training.tasks import task_of
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.validation_predictions import (
    beside_base,
    keep_predictions,
    prediction_columns,
    write_rows,
)
from lorakit.training.verdict.judge import judge

if TYPE_CHECKING:
    from torch import nn


_TRAINER_EXAMPLES = 32
"""Number of training examples to construct the trainer with; evaluation does not use them."""


@dataclass(frozen=True)
class Evaluation:
    """What an adapter reaches on some examples."""

    metrics: dict[str, float]
    """Metrics of the adapter, with "eval_" prefixes."""
    base_metrics: dict[str, float] | None
    """Those of the base without the adapter's updates and trained heads, if it was asked."""
    verdict: Verdict | None
    """Whether the adapter is better than the base, if the base was asked."""
    predictions: dict[str, list[Any]] | None
    """Inputs, expected answers and predictions by column, for the first 10,000 examples; None for
    CAUSAL_LM, whose evaluation generates nothing."""

    def write_predictions(self, path: Path) -> None:
        """Write the predictions to a JSON Lines file, one example per line.

        Raises:
            ConfigError: There are none.
            DiskError: The file cannot be written.
        """
        if self.predictions is None:
            raise ConfigError(
                f"There are no predictions for {path}: got an evaluation that generates nothing, "
                "expected SEQ_CLS, TOKEN_CLS, or SEQ_2_SEQ_LM with "
                "training.predict_with_generate=true. `lorakit predict` writes answers."
            )
        with reporting_disk_errors(path, "predictions"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rows(self.predictions, path)


def evaluate(
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    data: str | None = None,
    max_rows: int | None = None,
    use_base: bool = False,
    on_event: EventHandler | None = None,
) -> dict[str, float]:
    """Evaluate an adapter with the metrics of its task.

    Args:
        path: A run directory, or an adapter or checkpoint directory.
        recipe: The recipe that names base and data; by default the run's.
        data: A dataset to evaluate on, as in `data.validation` of a recipe; by default the
            recipe's validation examples. If it, or the recipe, names one, the training examples
            are not read.
        max_rows: Maximum number of examples; by default as in the recipe.
        use_base: Whether to evaluate the base without the adapter's updates and trained heads.
        on_event: Receives the events "data" and "injected", as in `train`.

    Returns: The metrics, with "eval_" prefixes.

    Raises:
        MissingFileError: There is no adapter at `path`, or no recipe beside it.
        ConfigError: There are no validation examples.
        AdapterMismatchError: The adapter was made for another base.
    """
    with (
        _evaluating(path, recipe, data, max_rows, on_event) as (setup, trainer),
        disable_adapters(setup.model) if use_base else nullcontext(),
    ):
        return model_metrics(trainer.evaluate())


def measure(
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    data: str | None = None,
    max_rows: int | None = None,
    with_base: bool = False,
    on_event: EventHandler | None = None,
) -> Evaluation:
    """Evaluate an adapter and keep its predictions; on request compare it with its base.

    Args:
        path: See `evaluate`, as for `recipe`, `data` and `max_rows`.
        recipe: See there.
        data: See there.
        max_rows: See there.
        with_base: Whether to evaluate the base too.
        on_event: Receives the events "data" and "injected", as in `train`.

    Raises:
        LorakitError: See `evaluate`.
    """
    with _evaluating(path, recipe, data, max_rows, on_event) as (setup, trainer):
        keep_predictions(setup, trainer)
        metrics = model_metrics(trainer.evaluate())
        found = trainer.evaluation_at(trainer.state.global_step)
        predicted = None if found is None else found.predicted
        base_metrics = verdict = None
        if with_base:
            with trainer.evaluating_apart(), disable_adapters(setup.model):
                base_metrics = model_metrics(trainer.evaluate())
                base = trainer.evaluation_at(trainer.state.global_step)
            judgement = judge(
                *(setup, trainer, found, ignore_event), known=setup.encoded.validation, base=base
            )
            verdict, predicted = judgement.verdict, beside_base(predicted, judgement)
        columns = None if predicted is None else prediction_columns(setup, predicted)
    return Evaluation(metrics, base_metrics, verdict, columns)


@contextmanager
def _evaluating(
    path: str | Path,
    recipe: Recipe | None,
    data: str | None,
    max_rows: int | None,
    on_event: EventHandler | None,
) -> Iterator[tuple[Setup, AdapterTrainerMixin]]:
    """Yield the setup of an adapter on its base, and a trainer that evaluates it."""
    adapter, run_recipe = find_adapter(path)
    recipe = recipe or run_recipe
    if recipe is None:
        raise MissingFileError(
            f"Cannot evaluate {path}: there is no recipe.yaml beside it, so base and data are "
            "unknown. Name the run directory, or give a recipe."
        )
    settings = settings_beside(adapter)
    if run_recipe is not None and recipe.model == run_recipe.model:
        require_weights_of_training(settings, recipe.model, recipe.revision, adapter / CONFIG_FILE)
    if recipe.dtype == "auto":
        saved = recipe.model_copy(update={"dtype": settings.dtype or "saved"})
        recipe = recipe.with_precision_of(run_recipe or saved)
    reference = None if recipe.objective is None else _reference(recipe, adapter)
    if recipe.start_from is not None:  # the adapter has what came from there
        recipe = recipe.model_copy(update={"start_from": str(adapter), "lora": LoraConfig()})
    recipe = _for_evaluation(recipe, data, max_rows, settings)
    _require_label_names(recipe, adapter, settings)
    reads_training = recipe.data.validation is None
    setup = prepare(
        recipe,
        on_event or ignore_event,
        attach=partial(_attach, path=adapter, reference=reference),
        labels=settings.labels,
        load=load_splits if reads_training else load_validation,
        tokenizer_of=saved_tokenizer(adapter),
    )
    if setup.encoded.validation is None:
        raise ConfigError(
            "There are no examples to evaluate on: data.validation is not given and "
            "data.validation_fraction is 0. Name a dataset with `data`."
        )
    few = setup.encoded.train.select(range(min(_TRAINER_EXAMPLES, len(setup.encoded.train))))
    with scratch_directory("lorakit-evaluate-") as scratch:
        encoded = replace(setup.encoded, train=few)
        setup = replace(setup, task=setup.task.with_settings(settings), encoded=encoded)
        setup.arguments.output_dir = str(scratch)
        yield setup, cast(AdapterTrainerMixin, setup.build_trainer())


def settings_beside(adapter: Path) -> InferenceSettings:
    """Return the settings of an adapter; those of a checkpoint are in its finished run."""
    run = RunDirectory.around(adapter)
    if run is not None and not (adapter / SETTINGS_FILE).is_file():
        return InferenceSettings.load(run.adapter)
    return InferenceSettings.load(adapter)


def _require_label_names(recipe: Recipe, adapter: Path, settings: InferenceSettings) -> None:
    """Refuse an adapter of which nothing says which output of its head is which class.

    The order in which labels are found in the data may be another.
    """
    if settings.labels is not None or recipe.task not in TASKS_WITH_LABELS:
        return
    if task_of(recipe).label_column(recipe) is not None:
        raise ConfigError(
            f"The adapter at '{adapter}' does not say which output of its head is which class: got "
            "no labels in lorakit.json, expected their names in the order of the outputs. Write "
            '{"labels": ["...", "..."]} into lorakit.json beside it.'
        )


def _reference(recipe: Recipe, adapter: Path) -> Path | None:
    """Return the adapter that a run of an objective started from, None if it is the base."""
    if recipe.start_from is None:
        return None
    kept = RunDirectory(adapter.parent).start_from
    return kept if kept.is_dir() else locate_adapter(recipe.start_from)[0]


def _attach(model: nn.Module, path: Path, reference: Path | None) -> Injection:
    """Add an adapter to a base, whose vocabulary is enlarged for the adapter's new tokens."""
    adapter = Adapter.load(path)
    fit_vocabulary(model, adapter)
    if reference is not None:
        add_adapter(model, Adapter.load(reference), REFERENCE, trainable=False)
    injection = add_adapter(model, adapter, trainable=False)
    set_adapter(model, injection.name)
    return injection


def _for_evaluation(
    recipe: Recipe, data: str | None, max_rows: int | None, settings: InferenceSettings
) -> Recipe:
    changes: dict[str, object] = {}
    if recipe.task is TaskType.SEQ_CLS:  # as in training, whatever the labels look like
        given = recipe.data.problem_type
        is_foreign = settings.labels is None and given != "auto"
        changes["problem_type"] = given if is_foreign else settings.problem_type or SINGLE_LABEL
    if data is not None:
        changes |= {"validation": data, "validation_split": None}
    if max_rows is not None:
        changes["max_validation_rows"] = max_rows
    # Examples for a prompt would have to come from the training examples, which are not read.
    evaluation = recipe.evaluation.model_copy(update={"examples_in_prompt": 0})
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=changes),
            "training": without_schedule(recipe.training),
            "evaluation": evaluation,
        }
    )
