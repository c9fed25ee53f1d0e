"""Which parameters a configuration adapts by name, and how they are found.

The stacked weights of experts are adapted under the parameters' paths. The weight of a
module is adapted as the module itself, under its path: a linear layer as `target_modules` would,
any other by running its forward on the updated weight.
"""

from collections.abc import Iterable, Mapping

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from lorakit.config import LoraConfig
from lorakit.errors import TargetError, did_you_mean
from lorakit.injection.selection.adapted_classes import adapted_class_of, describe
from lorakit.injection.selection.attention import is_output
from lorakit.injection.selection.targets import layer_index, name_matches, shortest_names
from lorakit.injection.selection.variants import obstacle_of_parameters
from lorakit.injection.state import base_modules
from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.kinds.attention import LoraAttentionOutput
from lorakit.layers.kinds.experts import (
    expert_parameters,
    get_adapted_parameter,
    is_known_experts,
)
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.kinds.read_weight import LoraReadWeight, read_weight_class
from lorakit.layers.replaced import plain_class_of

WEIGHT = "weight"
"""Name of the parameter that is adapted as its module."""

_OTHER_FACTORS = (nn.Embedding, nn.MultiheadAttention, NonDynamicallyQuantizableLinear, Conv1D)
"""Modules whose factors are not those of their weight as a matrix (out, in)."""


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """Return the base's modules by path, without those that represent a parameter."""
    return {path: m for path, m in base_modules(model) if not isinstance(m, AdaptedParameter)}


def adaptable_parameter(owner: nn.Module | None, name: str) -> AdaptedParameter | None:
    """Return the `AdaptedParameter` of a module's parameter, or None if it cannot be adapted."""
    if owner is None or not _is_adaptable(owner, name):
        return None
    return get_adapted_parameter(owner, name)


def parameter_at(modules: Mapping[str, nn.Module], path: str) -> AdaptedParameter | None:
    """Return the `AdaptedParameter` at a path, or None if none can be adapted there."""
    owner_path, _, name = path.rpartition(".")
    return adaptable_parameter(modules.get(owner_path), name) if owner_path else None


def weight_class_of(module: nn.Module) -> type[LoraReadWeight] | None:
    """Return the class that adapts the weight of a module by running its plain forward, or None."""
    if isinstance(module, LoraReadWeight):
        return plain_class_of(module)  # type: ignore[return-value]  # an adapted class
    is_other = isinstance(module, (AdaptedLayer, *_OTHER_FACTORS))
    weight = module._parameters.get(WEIGHT)
    if is_other or weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return None
    return read_weight_class(plain_class_of(module))


def class_for(module: nn.Module, is_of_attention: bool) -> type[AdaptedLayer] | None:
    """Return the class that adapts a module, or represents a parameter, however it is named.

    Args:
        module: A module of the base, or an `AdaptedParameter`.
        is_of_attention: Whether it is the output projection of an attention, adapted with it.
    """
    if is_of_attention and is_output(module):
        return LoraAttentionOutput
    return adapted_class_of(module) or weight_class_of(module)


def is_by_parameter(config: LoraConfig, path: str) -> bool:
    """Return whether a configuration selects a module only by the name of its weight."""
    targets = config.target_modules
    by_module = isinstance(targets, (str, tuple)) and name_matches(targets, path)
    return not by_module and name_matches(config.target_parameters, f"{path}.{WEIGHT}")


def select_parameters(
    config: LoraConfig, free: Mapping[str, nn.Module], problems: list[str]
) -> dict[str, nn.Module]:
    """Select the parameters that `target_parameters` names, as PEFT matches them.

    `problems` gets a line for each name that selects nothing or cannot be adapted.

    Returns: Adapted parameters, and modules whose weight is named, by path in the model's order.
    """
    if not config.target_parameters:
        return {}
    impossible = obstacle_of_parameters(config)
    if impossible is not None:
        problems.append(
            f"{impossible[0]}=True with target_parameters: a stacked weight {impossible[1]}, "
            "expected plain updates. Leave one of the two out."
        )
    paths = _parameter_paths(free)
    missed = [
        name for name in config.target_parameters if not any(name_matches([name], p) for p in paths)
    ]
    if missed:
        known = [path for path, (owner, name) in paths.items() if _is_adaptable(owner, name)]
        last = list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in known))
        hint = next((h for n in missed if (h := did_you_mean(n, [*last, *known]))), "")
        problems.append(
            f"No parameter matched target_parameters={missed!r}. Stacked weights of experts here: "
            f"{', '.join(last) or 'none'}.{hint}"
        )
    selected: dict[str, nn.Module] = {}
    for path, (owner, name) in paths.items():
        if not name_matches(config.target_parameters, path) or not _in_layers(config, path):
            continue
        adapted = adaptable_parameter(owner, name)
        if adapted is not None:
            selected[path] = adapted
        elif name == WEIGHT and (_is_linear(owner) or weight_class_of(owner) is not None):
            selected[path.removesuffix(f".{WEIGHT}")] = owner
        else:
            problems.append(f"Cannot adapt the parameter {path}: {_obstacle(owner, name)}")
    if not selected and not problems:
        problems.append(
            f"layers_to_transform={list(config.layers_to_transform or ())} leaves no parameter of "
            f"target_parameters={list(config.target_parameters)}. Layers are counted from 0."
        )
    return selected


def recorded_parameters(
    selected: Iterable[str], modules: Mapping[str, nn.Module], config: LoraConfig
) -> tuple[str, ...]:
    """Return the names that select exactly these parameters, for the adapter's file.

    Raises:
        TargetError: No names distinguish them from others of the model.
    """
    names = shortest_names(list(selected), list(_parameter_paths(modules)))
    if names is None:
        raise TargetError(
            f"Cannot record target_parameters={list(config.target_parameters)}: the path of one of "
            "them is the end of another parameter's that is not selected, expected names that "
            "distinguish them. Adapt both."
        )
    return names


def _parameter_paths(modules: Mapping[str, nn.Module]) -> dict[str, tuple[nn.Module, str]]:
    return {
        f"{path}.{name}" if path else name: (module, name)
        for path, module in modules.items()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def _is_linear(owner: nn.Module) -> bool:
    return isinstance(owner, nn.Linear) and not isinstance(owner, _OTHER_FACTORS)


def _is_adaptable(owner: nn.Module, name: str) -> bool:
    return is_known_experts(owner) and name in expert_parameters(owner)


def _in_layers(config: LoraConfig, path: str) -> bool:
    wanted = config.layers_to_transform
    return wanted is None or layer_index(path, config.layers_pattern) in wanted


def _obstacle(owner: nn.Module, name: str) -> str:
    """Return why a parameter cannot be adapted, and the next step."""
    kind = describe(owner)
    parameter = owner._parameters[name]
    shape = () if parameter is None else tuple(parameter.shape)
    if isinstance(owner, (nn.Linear, *_OTHER_FACTORS)):
        return f"it belongs to a {kind}. Name that module in target_modules."
    if is_known_experts(owner):
        expected = ", ".join(expert_parameters(owner)) or "floating point matrices"
        return f"it has shape {shape}; expected {expected} of {kind}. Leave it out."
    return (
        f"{kind} has its own forward, which lorakit does not know, and the parameter shape "
        f"{shape}; expected stacked weights of transformers' experts, or a matrix named 'weight'. "
        "Leave it out, or train the module in full with modules_to_save."
    )
