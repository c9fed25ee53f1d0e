"""SEQ_CLS by the objective "reward": a score for an answer, learned from pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from lorakit.analysis.baselines import Guess, guess_answer
from lorakit.config import TaskType
from lorakit.data.answers import AnswerCollator
from lorakit.data.tokenizers import pad_id
from lorakit.models.pretrained import resolve_max_length
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.training.objectives.reward import REWARD_METRICS
from lorakit.training.tasks.base import Encoded, PreviewExample, Task
from lorakit.training.tasks.preference_lm import encode_answers, preview_answers
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.reward_trainer import RewardTrainer

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import Recipe

LABELS = ("reward",)
"""Name of the only output of the head."""


class AdapterRewardTrainer(AdapterTrainerMixin, RewardTrainer):
    """Trains an adapter of a reward model."""


class RewardModel(Task):
    """Score answers."""

    task_type: ClassVar[TaskType] = TaskType.SEQ_CLS
    best_metric: ClassVar[str] = "eval_accuracy"
    greater_is_better: ClassVar[bool] = True
    base_trainer_class: ClassVar[type[Trainer]] = RewardTrainer
    trainer_class: ClassVar[type[Trainer]] = AdapterRewardTrainer

    def __init__(self, config: ObjectiveConfig):
        """Create the task of an `objective:` section."""
        self.config = config

    def arguments_class(self) -> type[TrainingArguments]:
        """Return transformers' TrainingArguments."""
        return TrainingArguments

    def labels(self, splits: Splits, recipe: Recipe) -> tuple[str, ...]:
        """Return the name of the only output."""
        return LABELS

    def encode(
        self,
        splits: Splits,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labels: tuple[str, ...] | None,
    ) -> Encoded:
        """Tokenize each prompt with its two answers."""
        max_length = resolve_max_length(recipe.data.max_length, model, tokenizer)
        encoded, cut, layout, notes = encode_answers(
            splits, recipe, tokenizer, self.config, max_length
        )
        prompts = "messages" if layout.is_conversation else "prompt_completion"
        settings = self.settings(recipe, model, max_length=max_length, format=prompts)
        notes = (*self.fresh_notes(recipe, model), *notes)
        return Encoded(
            *(encoded["training"], encoded.get("validation"), notes, settings), cut_examples=cut
        )

    def preview_examples(
        self,
        encoded: Encoded,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
        n: int = 2,
    ) -> list[PreviewExample]:
        """Return the first examples, each with its rejected answer beside the chosen one."""
        return preview_answers(encoded, tokenizer, n)

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return loss, accuracy, scores and their margin."""
        return REWARD_METRICS

    def blind_guess(self, known: Any, examples: Any, labels: Sequence[str]) -> Guess:
        """Return chance."""
        return guess_answer(len(examples))

    def trainer_options(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: TrainingArguments,
        labels: tuple[str, ...] | None,
    ) -> dict[str, Any]:
        """Return the collator of answers."""
        arguments.remove_unused_columns = False  # the model does not take all columns
        collator = AnswerCollator(pad_id(tokenizer))
        return {"data_collator": collator, "center_rewards": self.config.center_rewards}
