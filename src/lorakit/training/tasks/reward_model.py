"""SEQ_CLS by the objective "reward": a score for an answer, learned from pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import Dataset
from transformers import Trainer, TrainingArguments

from lorakit.analysis.baselines import Guess, guess_answer
from lorakit.config import REGRESSION, TaskType
from lorakit.data.answers import AnswerCollator
from lorakit.data.tokenizers import pad_id
from lorakit.training.objectives.reward import REWARD_METRICS
from lorakit.training.tasks.answers_task import AnswersTask
from lorakit.training.tasks.base import Encoded, Loaded
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.reward_trainer import RewardTrainer

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import Recipe

LABELS = ("reward",)
"""Name of the only output of the head."""


class AdapterRewardTrainer(AdapterTrainerMixin, RewardTrainer):
    """Trains an adapter of a reward model."""


class RewardModel(AnswersTask):
    """Score answers."""

    task_type: ClassVar[TaskType] = TaskType.SEQ_CLS
    best_metric: ClassVar[str] = "eval_accuracy"
    greater_is_better: ClassVar[bool] = True
    base_trainer_class: ClassVar[type[Trainer]] = RewardTrainer
    trainer_class: ClassVar[type[Trainer]] = AdapterRewardTrainer

    def labels(self, splits: Splits, recipe: Recipe) -> tuple[str, ...]:
        """Return the name of the only output."""
        return LABELS

    def answer_settings(self, examples: Dataset, loaded: Loaded) -> dict[str, Any]:
        """Return that the score is a number."""
        return {"problem_type": REGRESSION}

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return loss, accuracy, scores and their margin."""
        return REWARD_METRICS

    def blind_guess(self, known: Any, examples: Any, labels: Sequence[str]) -> Guess:
        """Return chance."""
        return guess_answer(len(examples))

    def trainer_options(
        self, loaded: Loaded, encoded: Encoded, arguments: TrainingArguments
    ) -> dict[str, Any]:
        """Return the collator of answers."""
        arguments.remove_unused_columns = False  # the model does not take all columns
        collator = AnswerCollator(pad_id(loaded.tokenizer))
        return {"data_collator": collator, "center_rewards": self.config.center_rewards}
