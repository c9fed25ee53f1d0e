"""Predict the memory of a run before it starts."""

from lorakit.planning.memory_plan import MemoryPlan, plan
from lorakit.planning.sources import Sources, find_sources

__all__ = ["MemoryPlan", "Sources", "find_sources", "plan"]
