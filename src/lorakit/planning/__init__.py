"""Predict the memory of a run before it starts; imported when first used."""

import typing as _typing

from lorakit.libraries.lazy_names import lazy_names as _lazy_names

if _typing.TYPE_CHECKING:
    from lorakit.planning.memory_plan import MemoryPlan, bytes_together, plan
    from lorakit.planning.sources import Sources, find_sources

__all__ = ["MemoryPlan", "Sources", "bytes_together", "find_sources", "plan"]

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "lorakit.planning.memory_plan": ("MemoryPlan", "bytes_together", "plan"),
        "lorakit.planning.sources": ("Sources", "find_sources"),
    },
)
