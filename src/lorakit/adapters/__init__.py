"""Adapters as values and files, operations on them, and loading, saving and merging on a model."""

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.formats.gguf import save_gguf
from lorakit.adapters.formats.loralib import (
    from_loralib,
    lora_state_dict,
    mark_only_lora_as_trainable,
    to_loralib,
)
from lorakit.adapters.formats.portable import portable_adapter
from lorakit.adapters.on_model.hotswap import hotswap_adapter
from lorakit.adapters.on_model.initialize_from_data import DataInitialization, initialize_from_data
from lorakit.adapters.on_model.merge import (
    Merge,
    merge_adapters,
    merge_and_unload,
    unmerge_adapters,
)
from lorakit.adapters.on_model.save_and_load import (
    adapter_state_dict,
    load_adapter,
    load_adapter_state_dict,
    save_adapter,
)
from lorakit.adapters.on_model.several import adapters_in, load_adapters, save_adapters
from lorakit.adapters.on_model.vocabulary import fit_vocabulary, grow_vocabulary
from lorakit.adapters.operations.arithmetic import negated_adapter, scaled_adapter, summed_adapters
from lorakit.adapters.operations.combine import CombinationMethod, combine, combine_adapters
from lorakit.adapters.operations.extract import Extraction, extract, extract_adapter
from lorakit.adapters.operations.resize import Resize, resize_adapter

__all__ = [
    "Adapter",
    "CombinationMethod",
    "DataInitialization",
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
