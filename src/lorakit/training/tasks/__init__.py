"""The tasks: how each encodes its data, loads its base model and builds its trainer."""

from lorakit.training.tasks.base import Encoded, Loaded, PreviewExample, Task
from lorakit.training.tasks.registry import task_for, task_of, task_of_examples

__all__ = [
    "Encoded",
    "Loaded",
    "PreviewExample",
    "Task",
    "task_for",
    "task_of",
    "task_of_examples",
]
