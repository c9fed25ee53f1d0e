"""Modules that run as a whole: MLPs as one node; torch's encoders not, where that skips updates."""

from torch import nn

from lorakit.injection.state import base_modules, require_state, unwrap
from lorakit.layers import AdaptedLayer, ReplacedModule
from lorakit.layers.executors.fused_mlp import (
    FusedMlp,
    fuse_in_place,
    is_known_mlp,
    unfuse_in_place,
)
from lorakit.layers.replaced import base_parts

_SWITCHES = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
"""The attribute that each class reads before its fast path, and the value that disables it."""

_KEPT = "_lorakit_fast_path"


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


def disable_fast_paths(model: nn.Module) -> None:
    """Disable torch's fast path in encoders with adapted layers, and enable it in others.

    In evaluation without gradients nn.TransformerEncoderLayer passes the weights of its layers to
    one kernel, so no forward of theirs runs. Call this after each change of what is adapted.
    """
    for module in base_parts(unwrap(model)):
        if isinstance(module, (*_SWITCHES,)):
            inside = base_parts(module)
            _hold(module, any(isinstance(m, AdaptedLayer | ReplacedModule) for m in inside))


def _hold(module: nn.Module, is_held: bool) -> None:
    attribute, answer = next(s for kind, s in _SWITCHES.items() if isinstance(module, kind))
    attributes = vars(module)
    if is_held and _KEPT not in attributes:
        attributes[_KEPT] = attributes.get(attribute)
        attributes[attribute] = answer
    elif not is_held and _KEPT in attributes:
        attributes[attribute] = attributes.pop(_KEPT)
