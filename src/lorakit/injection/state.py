"""The state of a model that carries adapters."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from lorakit.config import LoraConfig
from lorakit.errors import AdapterNameError, AdapterStateError, did_you_mean
from lorakit.layers import AdaptedLayer, LowRankUpdate, ReplacedModule
from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.layers.executors.per_row import PerRowAdapters
from lorakit.layers.kinds.experts import LoraExperts
from lorakit.layers.replaced import base_parts

_ATTRIBUTE = "_lorakit_state"
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_-]*"
_OWN_CHILDREN = ("updates", "trained_copies", "adapted_parameters")
_CHANGED = (AdaptedLayer, ReplacedModule, LoraExperts)


@dataclass
class AdapterState:
    """The adapters of one model; stored on the model, so deepcopy and pickle include it."""

    configs: dict[str, LoraConfig] = field(default_factory=dict)
    trainable: dict[str, bool] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    is_merged: bool = False
    rows: PerRowAdapters | None = None
    """Which adapter each row of a batch has, inside `adapter_rows`."""
    modules_with_trained_tokens: tuple[str, ...] = ()
    """Adapters whose parameters require gradients since a batch had a row for them."""
    trained_before: tuple[str, ...] = ()
    """Names of the base's parameters that required gradients before the first adapter was added."""


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside torch.compile's wrapper, or the module itself."""
    return getattr(model, "_orig_mod", model)


def state_of(model: nn.Module) -> AdapterState | None:
    """Return the adapter state of a model, or None if it carries no adapter."""
    return getattr(unwrap(model), _ATTRIBUTE, None)


def require_state(model: nn.Module) -> AdapterState:
    """Return the adapter state of a model.

    Raises:
        AdapterNameError: The model carries no adapter.
    """
    state = state_of(model)
    if state is None:
        raise AdapterNameError(
            f"This {type(unwrap(model)).__name__} carries no adapter. Call add_adapter or "
            "load_adapter on it first (on this very object, not on a part of it)."
        )
    return state


def create_state(model: nn.Module) -> AdapterState:
    """Return the adapter state of a model, and create it if there is none."""
    state = state_of(model)
    if state is None:
        state = AdapterState(
            trained_before=tuple(n for n, p in model.named_parameters() if p.requires_grad)
        )
        setattr(model, _ATTRIBUTE, state)
    return state


def drop_state(model: nn.Module) -> None:
    """Remove the state and restore requires_grad of the base's parameters."""
    state = require_state(model)
    trained = set(state.trained_before)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    quantized_layers = _quantized_layers(model)
    if quantized_layers:
        from lorakit.layers.kinds.quantized import give_back

        for layer in quantized_layers:
            give_back(layer)
    delattr(model, _ATTRIBUTE)


def take_over_quantized(model: nn.Module) -> None:
    """Make quantized layers without an update compute as those with one do."""
    quantized_layers = _quantized_layers(model)
    if quantized_layers:
        from lorakit.layers.kinds.quantized import take_over

        for layer in quantized_layers:
            take_over(layer)


def _quantized_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in base_parts(unwrap(model)) if bits_of(module)]


def require_adapter(model: nn.Module, name: str) -> AdapterState:
    """Return the adapter state of a model that has an adapter of this name.

    Raises:
        AdapterNameError: There is no such adapter; lists the existing ones.
    """
    state = require_state(model)
    if name not in state.configs:
        known = ", ".join(state.configs)
        raise AdapterNameError(
            f"No adapter is named {name!r}; adapters here: {known}."
            f"{did_you_mean(name, state.configs)}"
        )
    return state


def require_unmerged(model: nn.Module, action: str) -> None:
    """Refuse an action on a merged model, and inside `adapter_rows`.

    Raises:
        AdapterStateError: The model is merged, or its batch rows have different adapters.
    """
    state = state_of(model)
    if state is not None and state.rows is not None:
        raise AdapterStateError(
            f"Cannot {action} inside adapter_rows, which has chosen an adapter for each row. "
            "Leave its with block first."
        )
    if state is not None and state.is_merged:
        raise AdapterStateError(
            f"Cannot {action} while adapters {list(state.active)} are merged into the weights. "
            "Call unmerge_adapters(model) first."
        )


def check_new_name(model: nn.Module, name: str) -> None:
    """Refuse a name that is taken or that cannot be part of a parameter's name.

    Raises:
        AdapterNameError: The name is taken or malformed.
    """
    if not re.fullmatch(_NAME, name) or hasattr(nn.ModuleDict(), name):
        raise AdapterNameError(
            f"{name!r} cannot name an adapter, expected letters, digits, '_' and '-' that are "
            "no attribute of a torch ModuleDict. Choose another name."
        )
    state = state_of(model)
    if state is not None and name in state.configs:
        raise AdapterNameError(
            f"An adapter named {name!r} is already there. Choose another name, or take it out "
            f"first: set_adapter(model, None), then delete_adapter(model, {name!r})."
        )


def valid_name(text: str) -> str:
    """Return a valid adapter name made from a text such as a folder name.

    >>> valid_name("run-1.5"), valid_name("keys"), valid_name("")
    ('run-1_5', 'adapter_keys', 'adapter')
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).lstrip("-")
    if not name.strip("_"):
        return "adapter"
    return f"adapter_{name}" if hasattr(nn.ModuleDict(), name) else name


def require_no_other_holder(model: nn.Module) -> None:
    """Refuse a model if one of its children, or a model that contains it, carries adapters.

    Raises:
        AdapterStateError: Layers are adapted, but this object has no adapter state.
    """
    adapted = None if state_of(model) is not None else first_adapted(model)
    if adapted is not None:
        raise AdapterStateError(
            f"Cannot add an adapter to this {type(model).__name__}: {adapted} carries one "
            "that was added through another object, a part of it or the model it belongs to. "
            "Add to that object, or unload its adapters first."
        )


def first_adapted(model: nn.Module) -> str | None:
    """Return the path of the first module that an adapter has changed, "it" for the model itself.

    None if there is none, whichever object the adapters were added through.
    """
    for path, module in base_modules(model):
        if isinstance(module, (AdaptedLayer, ReplacedModule)):
            return path or "it"
    return None


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) of the base alone, without what adapters added, each module once.

    Parameters that carry updates without being a layer are yielded under their names.
    """
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module]] = [("", unwrap(model))]
    while stack:
        path, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        skipped = _OWN_CHILDREN if isinstance(module, _CHANGED) else ()
        prefix = f"{path}." if path else ""
        children = [
            (prefix + name, child)
            for name, child in module._modules.items()  # faster than named_children
            if child is not None and name not in skipped
        ]
        if isinstance(module, LoraExperts):
            parameters_here = module.bind_parameters()
            children += [(f"{path}.{one.parameter_name}", one) for one in parameters_here]
        stack.extend(reversed(children))


def adapted_and_replaced_modules(
    model: nn.Module,
) -> tuple[list[AdaptedLayer], list[ReplacedModule]]:
    """Return the layers that carry updates and the modules that have trained copies.

    They are looked up each time, so layers that a user has deleted, replaced or copied are seen as
    they are. The walk builds no paths and enters no update, so its cost grows only with the depth
    of the model.
    """
    layers: list[AdaptedLayer] = []
    replaced: list[ReplacedModule] = []
    for module in base_parts(unwrap(model)):
        if isinstance(module, LoraExperts):
            module.bind_parameters()
        if isinstance(module, AdaptedLayer):
            layers.append(module)
        if isinstance(module, ReplacedModule):
            replaced.append(module)
    return layers, replaced


def own_parameters(module: nn.Module) -> dict[int, nn.Parameter]:
    """Return the base's parameters of a module and its children, by id, without adapters."""
    return {
        id(parameter): parameter
        for part in base_parts(module)
        for parameter in part._parameters.values()
        if parameter is not None
    }


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLayer]]:
    """Yield (path, layer) of every layer that carries updates."""
    for path, module in base_modules(model):
        if isinstance(module, AdaptedLayer):
            yield path, module


def updates_named(model: nn.Module, name: str) -> Iterator[tuple[str, AdaptedLayer, LowRankUpdate]]:
    """Yield (path, layer, update) of every layer that has an update of an adapter."""
    for path, layer in adapted_layers(model):
        if name in layer.updates:
            yield path, layer, layer.updates[name]  # type: ignore[misc]  # an item of a ModuleDict


def replaced_modules(model: nn.Module) -> Iterator[tuple[str, ReplacedModule]]:
    """Yield (path, module) of every module that has trained copies."""
    for path, module in base_modules(model):
        if isinstance(module, ReplacedModule):
            yield path, module
