"""One base in memory for all runs of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.errors import TrainingError
from lorakit.models.pretrained import (
    fresh_modules,
    initialize_fresh_weights,
    remember_fresh_modules,
)
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.quantization.small_parameters import keep_small_parameters_in_float32
from lorakit.training.shared_base import fingerprint
from lorakit.training.tasks.base import Task, seed_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorakit.recipes.recipe import Recipe


class BaseInProcess:
    """Loads a base once, and gives each run modules over its weights."""

    def __init__(self) -> None:
        self._base: PreTrainedModel | None = None
        self._fingerprint = ""

    @property
    def pristine(self) -> PreTrainedModel:
        """The base, without adapters."""
        if self._base is None:
            raise TrainingError("No base is loaded: got no run, expected one. Start a run first.")
        return self._base

    def load(
        self,
        recipe: Recipe,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
    ) -> PreTrainedModel:
        """Return a run's modules, with the bits that `task.load_base` gives them.

        Weights that the checkpoint lacks, such as a head, are the run's; its seed determines them.

        Args:
            recipe: The run's recipe.
            task: Its task.
            tokenizer: The base's tokenizer.
            labels: The task's labels, if it has any.

        Raises:
            MissingFileError, ConfigError, QuantizationError: See `Task.load_base`.
        """
        wanted = fingerprint(recipe, task, labels)
        if self._base is None or wanted != self._fingerprint:
            self._base = task.load_base(recipe, tokenizer, labels)
            self._fingerprint = wanted
            if recipe.float32_small_parameters:
                keep_small_parameters_in_float32(self._base)
        fresh = fresh_modules(self._base)
        model = copy_over_same_weights(self._base, apart=fresh)
        remember_fresh_modules(model, fresh)
        initialize_fresh_weights(model, seed_of(recipe))
        return model
