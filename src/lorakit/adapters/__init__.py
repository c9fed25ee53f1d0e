"""Adapters as values and as files, operations on them, and merging them into a model's weights."""

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.arithmetic import negated_adapter, scaled_adapter, summed_adapters
from lorakit.adapters.carried import (
    adapter_state_dict,
    load_adapter,
    load_adapter_state_dict,
    save_adapter,
)
from lorakit.adapters.combine import CombinationMethod, combine, combine_adapters
from lorakit.adapters.extract import Extraction, extract, extract_adapter
from lorakit.adapters.from_data import DataStart, initialize_from_data
from lorakit.adapters.gguf_format import save_gguf
from lorakit.adapters.hotswap import hotswap_adapter
from lorakit.adapters.loralib_format import (
    from_loralib,
    lora_state_dict,
    mark_only_lora_as_trainable,
    to_loralib,
)
from lorakit.adapters.merge import (
    Merge,
    merge_adapters,
    merge_and_unload,
    unmerge_adapters,
)
from lorakit.adapters.portable import portable_adapter
from lorakit.adapters.resize import Resize, resize_adapter
from lorakit.adapters.several import adapters_in, load_adapters, save_adapters
from lorakit.adapters.vocabulary import fit_vocabulary, grow_vocabulary

__all__ = [
    "Adapter",
    "CombinationMethod",
    "DataStart",
    "Extraction",
    "Merge",
    "Resize",
    "adapter_state_dict",
    "adapters_in",
    "combine",
    "combine_adapters",
    "extract",
    "extract_adapter",
    "fit_vocabulary",
    "from_loralib",
    "grow_vocabulary",
    "hotswap_adapter",
    "initialize_from_data",
    "load_adapter",
    "load_adapter_state_dict",
    "load_adapters",
    "lora_state_dict",
    "mark_only_lora_as_trainable",
    "merge_adapters",
    "merge_and_unload",
    "negated_adapter",
    "portable_adapter",
    "resize_adapter",
    "save_adapter",
    "save_adapters",
    "save_gguf",
    "scaled_adapter",
    "summed_adapters",
    "to_loralib",
    "unmerge_adapters",
]
