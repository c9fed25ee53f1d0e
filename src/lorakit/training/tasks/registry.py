"""Find the class of a task type."""

from lorakit.config import TaskType
from lorakit.training.tasks.base import Task


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
