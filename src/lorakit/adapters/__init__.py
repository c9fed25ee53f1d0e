"""Adapters as values and as files, and merging them into a model's weights."""

from lorakit.adapters.adapter import (
    Adapter,
    adapter_state_dict,
    load_adapter,
    load_adapter_state_dict,
    save_adapter,
)
from lorakit.adapters.hotswap import hotswap_adapter
from lorakit.adapters.merge import (
    Merge,
    merge_adapters,
    merge_and_unload,
    unmerge_adapters,
)

__all__ = [
    "Adapter",
    "Merge",
    "adapter_state_dict",
    "hotswap_adapter",
    "load_adapter",
    "load_adapter_state_dict",
    "merge_adapters",
    "merge_and_unload",
    "save_adapter",
    "unmerge_adapters",
]
