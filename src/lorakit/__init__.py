"""LoRA and QLoRA fine-tuning that costs what the mathematics says it should.

The public names are imported on first use, so that `import lorakit` stays fast.
"""

import typing as _typing
from importlib import import_module as _import_module

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
    from lorakit.training import Recipe, train
    from lorakit.tuning import tune

__version__ = "0.1.0"
"""The one place of the version; the package's metadata are made from it."""

_hide_missing_kernels()

_ORIGINS = {
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
    "lorakit.planning": ("MemoryPlan", "plan"),
    "lorakit.quantization": ("prepare_for_training", "quantize_model"),
    "lorakit.training": ("Recipe", "train"),
    "lorakit.tuning": ("tune",),
}
_ORIGIN_OF = {name: origin for origin, names in _ORIGINS.items() for name in names}

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
    "lora_state_dict",
    "mark_only_lora_as_trainable",
    "merge_adapters",
    "merge_and_unload",
    "plan",
    "prepare_for_training",
    "print_trainable_parameters",
    "quantize_model",
    "save_adapter",
    "set_adapter",
    "set_fused_mlp",
    "train",
    "tune",
    "unload",
    "unmerge_adapters",
]


def __getattr__(name: str) -> _typing.Any:
    if name not in _ORIGIN_OF:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}")
    value = getattr(_import_module(_ORIGIN_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
