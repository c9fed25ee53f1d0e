"""Adding adapters to a model, choosing which act, and removing them."""

from lorakit.injection.activation import (
    active_adapters,
    adapter_config,
    adapter_names,
    delete_adapter,
    disable_adapters,
    set_adapter,
    unload,
)
from lorakit.injection.inject import add_adapter
from lorakit.injection.per_row import adapter_rows
from lorakit.injection.report import Injection, Match
from lorakit.injection.trainable import (
    ParameterCount,
    count_parameters,
    print_trainable_parameters,
    trainable_text,
)
from lorakit.injection.whole_modules import set_fused_mlp

__all__ = [
    "Injection",
    "Match",
    "ParameterCount",
    "active_adapters",
    "adapter_config",
    "adapter_names",
    "adapter_rows",
    "add_adapter",
    "count_parameters",
    "delete_adapter",
    "disable_adapters",
    "print_trainable_parameters",
    "set_adapter",
    "set_fused_mlp",
    "trainable_text",
    "unload",
]
