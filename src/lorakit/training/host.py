"""What a run shares with other runs of its process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from lorakit.recipes.recipe import Recipe
    from lorakit.training.frozen_part import FrozenPart
    from lorakit.training.setup import Setup
    from lorakit.training.tasks import Task


class Host(Protocol):
    """Gives a run its base, and may compute its passes together with those of other runs."""

    def load_base(
        self,
        recipe: Recipe,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
    ) -> PreTrainedModel:
        """Return the base of a run, with the bits that `task.load_base` gives it."""
        ...

    def training(
        self, setup: Setup, trainer: Trainer, frozen: FrozenPart
    ) -> AbstractContextManager[tuple[str, ...]]:
        """Return a context in which the run trains and evaluates; it yields notes."""
        ...
