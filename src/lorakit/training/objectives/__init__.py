"""What a model learns from preferences: one class for each objective, behind one protocol."""

from lorakit.training.objectives.objective import Answers, Compared, Objective
from lorakit.training.objectives.registry import objective_for

__all__ = ["Answers", "Compared", "Objective", "objective_for"]
