"""Predict the memory of a run before it starts."""

from lorakit.planning.memory_plan import MemoryPlan, bytes_together, plan
from lorakit.planning.sources import Sources, find_sources

__all__ = ["MemoryPlan", "Sources", "bytes_together", "find_sources", "plan"]
