"""torch's fast paths through whole encoder layers, which read weights and would skip updates."""

from torch import nn

from lorakit.injection.state import base_modules, unwrap
from lorakit.layers import AdaptedLayer, ReplacedModule
from lorakit.layers.replaced import base_parts

_SWITCHES = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
"""The attribute that each class reads before its fast path, and the value that disables it."""

_KEPT = "_lorakit_fast_path"


def disable_fast_paths(model: nn.Module) -> None:
    """Disable torch's fast path in encoders with adapted layers, and enable it in others.

    In evaluation without gradients nn.TransformerEncoderLayer passes the weights of its layers to
    one kernel, so no forward of theirs runs. Call this after each change of what is adapted.
    """
    if not any(isinstance(module, (*_SWITCHES,)) for module in base_parts(unwrap(model))):
        return
    encoders = [
        (path, module) for path, module in base_modules(model) if isinstance(module, (*_SWITCHES,))
    ]
    changed = tuple(
        f"{path}."
        for path, module in base_modules(model)
        if isinstance(module, (AdaptedLayer, ReplacedModule))
    )
    for path, module in encoders:
        prefix = f"{path}." if path else ""
        _hold(module, any(inside.startswith(prefix) for inside in changed))


def _hold(module: nn.Module, is_held: bool) -> None:
    attribute, answer = next(s for kind, s in _SWITCHES.items() if isinstance(module, kind))
    attributes = vars(module)
    if is_held and _KEPT not in attributes:
        attributes[_KEPT] = attributes.get(attribute)
        attributes[attribute] = answer
    elif not is_held and _KEPT in attributes:
        attributes[attribute] = attributes.pop(_KEPT)
