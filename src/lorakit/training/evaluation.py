"""Evaluate a trained adapter on validation data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.adapters import Adapter, fit_vocabulary
from lorakit.adapters.inference_settings import SETTINGS_FILE, InferenceSettings
from lorakit.config import SINGLE_LABEL, LoraConfig, ProblemType, TaskType
from lorakit.errors import ConfigError, MissingFileError
from lorakit.files.atomic import scratch_directory
from lorakit.injection import Injection, add_adapter, disable_adapters
from lorakit.recipes.data_names import is_glob
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import find_adapter
from lorakit.training.evaluation_metrics import model_metrics
from lorakit.training.setup import prepare

if TYPE_CHECKING:
    from torch import nn

    from lorakit.training.callbacks import EventHandler

_TRAINING_ONLY = ("early_stopping_patience", "early_stopping_threshold", "report_to")
"""Training arguments that evaluation ignores."""
_TRAINER_EXAMPLES = 32
"""Number of training examples to construct the trainer with; evaluation does not use them."""


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
            need not exist any more.
        max_rows: Maximum number of examples; by default as in the recipe.
        use_base: Whether to evaluate the base without the adapter's updates and trained heads.
        on_event: Receives the events "data" and "injected", as in `train`.

    Returns: The metrics, with "eval_" prefixes.

    Raises:
        MissingFileError: There is no adapter at `path`, or no recipe beside it.
        ConfigError: There are no validation examples.
        AdapterMismatchError: The adapter was made for another base.
    """
    adapter, run_recipe = find_adapter(path)
    recipe = recipe or run_recipe
    if recipe is None:
        raise MissingFileError(
            f"Cannot evaluate {path}: there is no recipe.yaml beside it, so base and data are "
            "unknown. Name the run directory, or give a recipe."
        )
    settings = settings_beside(adapter)
    if recipe.dtype == "auto":
        saved = recipe.model_copy(update={"dtype": settings.dtype or "saved"})
        recipe = recipe.with_precision_of(run_recipe or saved)
    if recipe.start_from is not None:  # the adapter has what came from there
        recipe = recipe.model_copy(update={"start_from": str(adapter), "lora": LoraConfig()})
    recipe = _for_evaluation(recipe, data, max_rows, settings.problem_type)
    labels = None
    there = all(is_glob(name) or Path(name).exists() for name in recipe.data.train_names)
    if recipe.data.validation is not None and not there:
        # The trainer needs some training examples; the labels come from the adapter.
        split = recipe.data.validation_split or recipe.data.train_split
        replaced = {"train": recipe.data.validation, "train_split": split}
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=replaced)})
        labels = settings.labels
    setup = prepare(
        recipe,
        on_event or (lambda name, payload: None),
        attach=partial(_attach, path=adapter),
        labels=labels,
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
        trainer = setup.build_trainer()
        if use_base:
            with disable_adapters(setup.model):
                metrics = trainer.evaluate()
        else:
            metrics = trainer.evaluate()
    return model_metrics(metrics)


def settings_beside(adapter: Path) -> InferenceSettings:
    """Return the settings of an adapter; those of a checkpoint are in its finished run."""
    places = (adapter, adapter.parent / "adapter")
    place = next((place for place in places if (place / SETTINGS_FILE).is_file()), adapter)
    return InferenceSettings.load(place)


def _attach(model: nn.Module, path: Path) -> Injection:
    """Add an adapter to a base, whose vocabulary is enlarged for the adapter's new tokens."""
    adapter = Adapter.load(path)
    fit_vocabulary(model, adapter)
    return add_adapter(model, adapter, trainable=False)


def _for_evaluation(
    recipe: Recipe, data: str | None, max_rows: int | None, problem_type: ProblemType | None
) -> Recipe:
    changes: dict[str, object] = {}
    if recipe.task is TaskType.SEQ_CLS:  # as in training, whatever the labels look like
        changes["problem_type"] = problem_type or SINGLE_LABEL
    if data is not None:
        changes |= {"validation": data, "validation_split": None}
    if max_rows is not None:
        changes["max_validation_rows"] = max_rows
    training = {key: value for key, value in recipe.training.items() if key not in _TRAINING_ONLY}
    training |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update=changes), "training": training}
    )
