"""Training several runs on one base together: one forward and one backward pass for all."""

from lorakit.training.together.group import GroupedRun, RunGroup
from lorakit.training.together.run import train_together

__all__ = ["GroupedRun", "RunGroup", "train_together"]
