"""Measure a trained adapter on validation data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.adapters import Adapter, fit_vocabulary
from lorakit.adapters.inference_settings import SETTINGS_FILE, InferenceSettings
from lorakit.errors import ConfigError, MissingFileError
from lorakit.files.atomic import scratch_directory
from lorakit.injection import Injection, add_adapter, disable_adapters
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import find_adapter
from lorakit.training.final_metrics import is_speed
from lorakit.training.setup import prepare

if TYPE_CHECKING:
    from torch import nn

    from lorakit.training.callbacks import EventHandler

# What only training needs; evaluating must neither ask for it nor fail for it.
_TRAINING_ONLY = ("early_stopping_patience", "early_stopping_threshold", "report_to")
_ROWS_FOR_THE_TRAINER = 32
"""Training rows the trainer is built with; evaluation does not look at them."""


def evaluate(
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    data: str | None = None,
    max_rows: int | None = None,
    use_base: bool = False,
    on_event: EventHandler | None = None,
) -> dict[str, float]:
    """Measure an adapter with the metrics of its task.

    Args:
        path: A run directory, or an adapter or checkpoint directory.
        recipe: The recipe that names base and data; by default the run's own.
        data: A dataset to measure on (as `data.validation` of a recipe names one); by default the
            recipe's validation rows. Where it, or the recipe, names one, the training rows need
            not be there any more.
        max_rows: Look at this many rows at most; by default as the recipe says.
        use_base: Measure the base without the adapter's updates and trained heads.
        on_event: Told of "data" and "injected", as by `train`.

    Returns: The metrics, with "eval_" prefixes.

    Raises:
        MissingFileError: There is no adapter at `path`, or no recipe to be found with it.
        ConfigError: There are no validation examples.
        AdapterMismatchError: The adapter was made for another base.
    """
    adapter, own_recipe = find_adapter(path)
    recipe = recipe or own_recipe
    if recipe is None:
        raise MissingFileError(
            f"Cannot evaluate {path}: there is no recipe.yaml beside it, so base and data are "
            "unknown. Name the run directory, or give a recipe."
        )
    recipe = _for_evaluation(recipe, data, max_rows)
    labels = None
    if recipe.data.validation is not None and not Path(recipe.data.train).exists():
        # The trainer is built with some rows; the adapter knows the labels that it was trained on.
        instead = {"train": recipe.data.validation, "train_split": _split_of(recipe)}
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=instead)})
        labels = settings_beside(adapter).labels
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
    few = setup.encoded.train.select(range(min(_ROWS_FOR_THE_TRAINER, len(setup.encoded.train))))
    with scratch_directory("lorakit-evaluate-") as scratch:
        setup = replace(setup, encoded=replace(setup.encoded, train=few))
        setup.arguments.output_dir = str(scratch)
        trainer = setup.build_trainer()
        if use_base:
            with disable_adapters(setup.model):
                metrics = trainer.evaluate()
        else:
            metrics = trainer.evaluate()
    return {
        key: value
        for key, value in metrics.items()
        if key.startswith("eval_") and not is_speed(key)
    }


def _split_of(recipe: Recipe) -> str:
    return recipe.data.validation_split or recipe.data.train_split


def settings_beside(adapter: Path) -> InferenceSettings:
    """Return the settings of an adapter; those of a checkpoint lie in its finished run."""
    places = (adapter, adapter.parent / "adapter")
    place = next((place for place in places if (place / SETTINGS_FILE).is_file()), adapter)
    return InferenceSettings.load(place)


def _attach(model: nn.Module, path: Path) -> Injection:
    """Put an adapter onto a base, which gets rows for its new tokens where it has none."""
    adapter = Adapter.load(path)
    fit_vocabulary(model, adapter)
    return add_adapter(model, adapter, trainable=False)


def _for_evaluation(recipe: Recipe, data: str | None, max_rows: int | None) -> Recipe:
    changes: dict[str, object] = {}
    if data is not None:
        changes |= {"validation": data, "validation_split": None}
    if max_rows is not None:
        changes["max_validation_rows"] = max_rows
    training = {key: value for key, value in recipe.training.items() if key not in _TRAINING_ONLY}
    training |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update=changes), "training": training}
    )
