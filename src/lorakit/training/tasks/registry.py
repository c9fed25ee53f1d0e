"""Find the class of a task type, and of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.config import TaskType
from lorakit.training.tasks.base import Task

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe


def task_of(recipe: Recipe) -> Task:
    """Return the task of a recipe: that of its objective if it has one, else of its task type."""
    if recipe.objective is None:
        return task_for(recipe.task)
    if recipe.objective.type == "reward":
        from lorakit.training.tasks.reward_model import RewardModel

        return RewardModel(recipe.objective)
    from lorakit.training.tasks.preference_lm import PreferenceLM

    return PreferenceLM(recipe.objective)


def task_for(task_type: TaskType) -> Task:
    """Return the task of a task type."""
    # Tasks import heavy libraries such as TRL, so only the requested one is imported.
    match TaskType(task_type):
        case TaskType.SEQ_CLS:
            from lorakit.training.tasks.sequence_classification import SequenceClassification

            return SequenceClassification()
        case TaskType.TOKEN_CLS:
            from lorakit.training.tasks.token_classification import TokenClassification

            return TokenClassification()
        case TaskType.SEQ_2_SEQ_LM:
            from lorakit.training.tasks.seq2seq_lm import Seq2SeqLM

            return Seq2SeqLM()
        case TaskType.CAUSAL_LM:
            from lorakit.training.tasks.causal_lm import CausalLM

            return CausalLM()
