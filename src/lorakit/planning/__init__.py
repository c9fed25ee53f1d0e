"""What a run will take, before it is begun."""

from lorakit.planning.memory_plan import MemoryPlan, plan
from lorakit.planning.sources import Sources, find_sources

__all__ = ["MemoryPlan", "Sources", "find_sources", "plan"]
