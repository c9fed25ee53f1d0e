"""What a run will take, before it is begun."""

from lorakit.planning.memory_plan import MemoryPlan, plan

__all__ = ["MemoryPlan", "plan"]
