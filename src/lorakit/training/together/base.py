"""One base in memory for all runs of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.errors import ConfigError, TrainingError
from lorakit.models.pretrained import (
    fresh_modules,
    initialize_fresh_weights,
    remember_fresh_modules,
)
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.quantization.small_parameters import keep_small_parameters_in_float32
from lorakit.training.shared_base import facts_of_base
from lorakit.training.tasks.base import Task, seed_of
from lorakit.training.together.agreement import ADVICE, differences

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorakit.recipes.recipe import Recipe


class BaseInProcess:
    """Loads a base once, and gives each run modules over its weights."""

    def __init__(self, advice: str = ADVICE) -> None:
        """Create it; the first run loads the base.

        Args:
            advice: What the error of a run with another base says to do.
        """
        self._advice = advice
        self._base: PreTrainedModel | None = None
        self._facts: dict[str, Any] = {}
        self._settled: Recipe | None = None

    @property
    def pristine(self) -> PreTrainedModel:
        """The base, without adapters."""
        if self._base is None:
            raise TrainingError("No base is loaded: got no run, expected one. Start a run first.")
        return self._base

    def settle(self, recipe: Recipe) -> None:
        """Keep the base of the first run that is ready to train; later ones must have it, too."""
        if self._settled is None:
            self._settled = recipe

    def with_settled_dtype(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the dtype that `dtype: auto` has become in the first run."""
        first = self._settled
        if first is None or recipe.dtype != "auto":
            return recipe
        bf16 = {"bf16": True} if first.training.get("bf16") else {}
        training = {**recipe.training, **bf16}
        return recipe.model_copy(update={"dtype": first.dtype, "training": training})

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
            ConfigError: The runs before have another base; or see `Task.load_base`.
            MissingFileError, QuantizationError: See `Task.load_base`.
        """
        wanted = facts_of_base(recipe, task, labels)
        if wanted != self._facts:
            if self._settled is not None:
                raise ConfigError(
                    f"Cannot train {recipe.output} together with the others: "
                    f"{differences(self._facts, wanted)}. {self._advice}"
                )
            self._base = task.load_base(recipe, tokenizer, labels)
            self._facts = wanted
            if recipe.float32_small_parameters:
                keep_small_parameters_in_float32(self._base)
        fresh = fresh_modules(self.pristine)
        model = copy_over_same_weights(self.pristine, apart=fresh)
        remember_fresh_modules(model, fresh)
        initialize_fresh_weights(model, seed_of(recipe))
        return model
