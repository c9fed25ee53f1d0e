"""Find the class of a task type, and of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.config import MULTI_LABEL, REGRESSION, ProblemType, TaskType
from lorakit.training.tasks.base import Task

if TYPE_CHECKING:
    from lorakit.data import Splits
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


def task_for(task_type: TaskType, problem_type: ProblemType | None = None) -> Task:
    """Return the task of a task type.

    Args:
        task_type: The task type.
        problem_type: What the head of a text classifier predicts; None is one class.
    """
    # Tasks import heavy libraries such as TRL, so only the requested one is imported.
    match TaskType(task_type):
        case TaskType.SEQ_CLS if problem_type == MULTI_LABEL:
            from lorakit.training.tasks.multi_label import MultiLabelClassification

            return MultiLabelClassification()
        case TaskType.SEQ_CLS if problem_type == REGRESSION:
            from lorakit.training.tasks.regression import TextRegression

            return TextRegression()
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


def task_of_examples(recipe: Recipe, splits: Splits) -> Task:
    """Return the task of a recipe, for whose labels its training examples may be needed.

    Args:
        recipe: The recipe.
        splits: Its examples.

    Raises:
        DataError: The labels of texts can be read in two ways.
    """
    given = recipe.data.problem_type
    if recipe.objective is not None or recipe.task is not TaskType.SEQ_CLS:
        return task_of(recipe)
    if given == "auto":
        from lorakit.data.targets import problem_type_of

        place = splits.training_place(recipe.data)
        given = problem_type_of(splits.train, recipe.data.label, place)
    return task_for(recipe.task, given)
