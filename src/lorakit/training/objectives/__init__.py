"""What a model learns from preferences: one class for each objective, behind one protocol."""

from lorakit.training.objectives.objective import Answers, Compared, Objective

__all__ = ["Answers", "Compared", "Objective"]
