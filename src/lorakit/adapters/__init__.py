"""Adapters as values and as files, operations on them, and merging them into a model's weights."""

from lorakit.adapters.adapter import (
    Adapter,
    adapter_state_dict,
    load_adapter,
    load_adapter_state_dict,
    save_adapter,
)
from lorakit.adapters.arithmetic import negated_adapter, scaled_adapter, summed_adapters
from lorakit.adapters.combine import CombinationMethod, combine, combine_adapters
from lorakit.adapters.hotswap import hotswap_adapter
from lorakit.adapters.merge import (
    Merge,
    merge_adapters,
    merge_and_unload,
    unmerge_adapters,
)
from lorakit.adapters.resize import Resize, resize_adapter

__all__ = [
    "Adapter",
    "CombinationMethod",
    "Merge",
    "Resize",
    "adapter_state_dict",
    "combine",
    "combine_adapters",
    "hotswap_adapter",
    "load_adapter",
    "load_adapter_state_dict",
    "merge_adapters",
    "merge_and_unload",
    "negated_adapter",
    "resize_adapter",
    "save_adapter",
    "scaled_adapter",
    "summed_adapters",
    "unmerge_adapters",
]
