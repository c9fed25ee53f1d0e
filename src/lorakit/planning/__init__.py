"""Predict the memory of a run before it starts."""

from lorakit.planning.fake_run import FakeRun, build_fake_run
from lorakit.planning.memory_plan import MemoryPlan, bytes_together, plan, plan_of
from lorakit.planning.sources import Sources, find_sources

__all__ = [
    "FakeRun",
    "MemoryPlan",
    "Sources",
    "build_fake_run",
    "bytes_together",
    "find_sources",
    "plan",
    "plan_of",
]
