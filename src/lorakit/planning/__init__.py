"""Predict the memory of a run before it starts; imported when first used."""

import typing as _typing

from lorakit.libraries.lazy_names import lazy_names as _lazy_names

if _typing.TYPE_CHECKING:
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

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "lorakit.planning.fake_run": ("FakeRun", "build_fake_run"),
        "lorakit.planning.memory_plan": ("MemoryPlan", "bytes_together", "plan", "plan_of"),
        "lorakit.planning.sources": ("Sources", "find_sources"),
    },
)
