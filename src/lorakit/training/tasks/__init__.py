"""The four task types: how each loads its data, its base model and its trainer."""

from lorakit.training.tasks.base import Encoded, PreviewExample, Task
from lorakit.training.tasks.registry import task_for

__all__ = ["Encoded", "PreviewExample", "Task", "task_for"]
