"""LoRA and QLoRA fine-tuning that costs what the mathematics says it should.

The public names are imported on first use, so that `import lorakit` stays fast.
"""

import typing as _typing

from lorakit.libraries.lazy_names import lazy_names as _lazy_names
from lorakit.libraries.logs import hide_missing_kernels as _hide_missing_kernels

if _typing.TYPE_CHECKING:
    from lorakit.adapters import (
        Adapter,
        combine_adapters,
        extract_adapter,
        hotswap_adapter,
        initialize_from_data,
        load_adapter,
        lora_state_dict,
        mark_only_lora_as_trainable,
        merge_adapters,
        merge_and_unload,
        save_adapter,
        unmerge_adapters,
    )
    from lorakit.config import LoraConfig, QuantizationConfig, TaskType
    from lorakit.errors import LorakitError
    from lorakit.inference import load_run
    from lorakit.injection import (
        Injection,
        ParameterCount,
        active_adapters,
        adapter_names,
        adapter_rows,
        add_adapter,
        count_parameters,
        delete_adapter,
        disable_adapters,
        print_trainable_parameters,
        set_adapter,
        set_fused_mlp,
        unload,
    )
    from lorakit.planning import MemoryPlan, plan
    from lorakit.quantization import prepare_for_training, quantize_model
    from lorakit.serving import serve
    from lorakit.training import Recipe, train, train_together
    from lorakit.tuning import tune

__version__ = "0.1.0"
"""The one place of the version; the package's metadata are made from it."""

_hide_missing_kernels()

__all__ = [
    "Adapter",
    "Injection",
    "LoraConfig",
    "LorakitError",
    "MemoryPlan",
    "ParameterCount",
    "QuantizationConfig",
    "Recipe",
    "TaskType",
    "active_adapters",
    "adapter_names",
    "adapter_rows",
    "add_adapter",
    "combine_adapters",
    "count_parameters",
    "delete_adapter",
    "disable_adapters",
    "extract_adapter",
    "hotswap_adapter",
    "initialize_from_data",
    "load_adapter",
    "load_run",
    "lora_state_dict",
    "mark_only_lora_as_trainable",
    "merge_adapters",
    "merge_and_unload",
    "plan",
    "prepare_for_training",
    "print_trainable_parameters",
    "quantize_model",
    "save_adapter",
    "serve",
    "set_adapter",
    "set_fused_mlp",
    "train",
    "train_together",
    "tune",
    "unload",
    "unmerge_adapters",
]

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "lorakit.adapters": (
            "Adapter",
            "combine_adapters",
            "extract_adapter",
            "hotswap_adapter",
            "initialize_from_data",
            "load_adapter",
            "lora_state_dict",
            "mark_only_lora_as_trainable",
            "merge_adapters",
            "merge_and_unload",
            "save_adapter",
            "unmerge_adapters",
        ),
        "lorakit.config": ("LoraConfig", "QuantizationConfig", "TaskType"),
        "lorakit.errors": ("LorakitError",),
        "lorakit.injection": (
            "Injection",
            "ParameterCount",
            "active_adapters",
            "adapter_names",
            "adapter_rows",
            "add_adapter",
            "count_parameters",
            "delete_adapter",
            "disable_adapters",
            "print_trainable_parameters",
            "set_adapter",
            "set_fused_mlp",
            "unload",
        ),
        "lorakit.inference": ("load_run",),
        "lorakit.planning": ("MemoryPlan", "plan"),
        "lorakit.quantization": ("prepare_for_training", "quantize_model"),
        "lorakit.serving": ("serve",),
        "lorakit.training": ("Recipe", "train", "train_together"),
        "lorakit.tuning": ("tune",),
    },
)
