"""The switch for running whole MLPs as one node."""

from torch import nn

from lorakit.injection.state import base_modules, require_state, unwrap
from lorakit.layers import ReplacedModule
from lorakit.layers.executors.fused_mlp import (
    FusedMlp,
    fuse_in_place,
    is_known_mlp,
    unfuse_in_place,
)


def set_fused_mlp(model: nn.Module, enabled: bool = True) -> int:
    """Choose whether MLPs with adapted layers run as one autograd node.

    The node saves neither the activation's output nor the input of the last layer, and recomputes
    both in backward: this saves a quarter of a step's memory for a Llama-like model. It acts while
    gradients are computed and the MLP's forward is a known one (such as those of Llama, Qwen,
    Mistral, Gemma and GPT-2); others run as before. Results are the same except for rounding.
    `add_adapter` turns it on with the first adapter.

    Args:
        model: A model with adapters.
        enabled: On or off.

    Returns: The number of MLPs with adapted layers that now run as one node.

    Raises:
        AdapterNameError: The model carries no adapter.
    """
    require_state(model)
    fused = 0
    for _, module in list(base_modules(unwrap(model))):
        if isinstance(module, ReplacedModule):
            continue
        if enabled and is_known_mlp(module):
            fuse_in_place(module)
        elif not enabled and isinstance(module, FusedMlp):
            unfuse_in_place(module)
        fused += isinstance(module, FusedMlp) and module.has_adapted_layers()
    return fused


def unfuse_all(module: nn.Module) -> None:
    """Swap the plain classes back in a module that adapters will copy."""
    for part in list(module.modules()):
        if isinstance(part, FusedMlp):
            unfuse_in_place(part)
