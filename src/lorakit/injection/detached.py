"""Moving an adapter from one model to another with the same modules.

Adding an adapter compares every tensor with its place and copies it. A model that is running gets
one that was built for a copy of it instead (`AdapterBuilder`): attaching only puts finished objects
into their places.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lorakit.config import LoraConfig
from lorakit.injection.activation import adding_adapter
from lorakit.injection.fused_mlp import unfuse_all
from lorakit.injection.siblings import group_siblings
from lorakit.injection.state import (
    adapted_layers,
    check_new_name,
    replaced_modules,
    require_adapter,
    require_no_other_holder,
    require_unmerged,
    unwrap,
)
from lorakit.layers import AdaptedLayer, LowRankUpdate, plain_class_of, replace_in_place
from lorakit.layers.kinds.experts import attach, get_adapted_parameter
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.trained_tokens import TrainedTokensOfEmbedding


@dataclass(frozen=True)
class DetachedUpdate:
    """The update of one layer.

    Attributes:
        path: The layer.
        update: Its update.
        layer_class: The class that the layer has while it is adapted.
    """

    path: str
    update: LowRankUpdate
    layer_class: type[AdaptedLayer]


@dataclass(frozen=True)
class DetachedCopy:
    """The trained copy of one module.

    Attributes:
        path: The module.
        copy: Its copy.
        shared_children: Names of the children that the copy has in common with the module.
    """

    path: str
    copy: nn.Module
    shared_children: tuple[str, ...]


@dataclass(frozen=True)
class DetachedAdapter:
    """An adapter that no model carries, with the objects that act in a layer.

    Attributes:
        name: Its name.
        config: Its configuration.
        is_trainable: Whether its parameters require gradients while it acts.
        updates: Its updates.
        copies: Its heads, modules with trained biases, and trained tokens.
    """

    name: str
    config: LoraConfig
    is_trainable: bool
    updates: tuple[DetachedUpdate, ...]
    copies: tuple[DetachedCopy, ...]


def adapter_in_place(model: nn.Module, name: str) -> DetachedAdapter:
    """Describe an adapter of a model that keeps it, by the very objects that act there.

    Args:
        model: A model with adapters.
        name: One of them.

    Raises:
        AdapterNameError: There is no such adapter.
    """
    state = require_adapter(model, name)
    updates = tuple(
        DetachedUpdate(
            path,
            layer.updates[name],  # type: ignore[arg-type]  # an item of a ModuleDict
            plain_class_of(layer),  # type: ignore[arg-type]  # an adapted class
        )
        for path, layer in adapted_layers(model)
        if name in layer.updates
    )
    copies = tuple(
        describe_copy(module, path, module.trained_copies[name])
        for path, module in replaced_modules(model)
        if name in module.trained_copies
    )
    config, is_trainable = state.configs[name], state.trainable[name]
    return DetachedAdapter(name, config, is_trainable, updates, copies)


def attach_adapter(model: nn.Module, adapter: DetachedAdapter) -> None:
    """Put an adapter into a model, where it does not act yet; nothing is compared or copied.

    If an error occurs, the model does not carry it.

    Args:
        model: A model with the modules and weights of the one that it was detached from; other
            adapters may differ.
        adapter: The adapter, which no other model carries.

    Raises:
        AdapterNameError: The name is taken.
        AdapterStateError: The model is merged, or its adapters were added through another object.
    """
    model = unwrap(model)
    require_unmerged(model, "attach an adapter")
    require_no_other_holder(model)
    check_new_name(model, adapter.name)
    with adding_adapter(model, adapter.name, adapter.config, adapter.is_trainable):
        newly_adapted = [
            each.path for each in adapter.updates if _attach_update(model, adapter.name, each)
        ]
        for each in adapter.copies:
            _attach_copy(model, adapter.name, each)
        LowRankUpdate.count_exchange()  # layers look again at what they have prepared
        group_siblings(model, newly_adapted)


def _attach_update(model: nn.Module, name: str, given: DetachedUpdate) -> bool:
    """Give a layer its update; return whether it was plain before."""
    if issubclass(given.layer_class, AdaptedParameter):
        owner_path, _, parameter = given.path.rpartition(".")
        owner = model.get_submodule(owner_path)
        layer: nn.Module = get_adapted_parameter(owner, parameter)
        attach(layer)
        is_new = False
    else:
        layer = model.get_submodule(given.path)
        is_new = not isinstance(layer, AdaptedLayer)
        if is_new:
            layer = given.layer_class.adapt_in_place(layer)
    layer.updates[name] = given.update  # type: ignore[operator,index]  # an item of a ModuleDict
    return is_new


def _attach_copy(model: nn.Module, name: str, given: DetachedCopy) -> None:
    """Give a module its trained copy, with the module's children instead of the other model's."""
    module = model.get_submodule(given.path)
    unfuse_all(module)
    part = _holding_children(given.copy)
    for child in given.shared_children:
        part._modules[child] = module._modules[child]
    replace_in_place(module).trained_copies[name] = given.copy


def describe_copy(module: nn.Module, path: str, copy: nn.Module) -> DetachedCopy:
    """Describe the copy of a module, made for an adapter.

    Args:
        module: The base's module.
        path: Its path.
        copy: Its trained copy.
    """
    children = _holding_children(copy)._modules
    shared = (n for n, child in children.items() if child is module._modules.get(n, copy))
    return DetachedCopy(path, copy, tuple(shared))


def _holding_children(copy: nn.Module) -> nn.Module:
    """Return the part of a copy that may have children of the base's module."""
    return copy.table if isinstance(copy, TrainedTokensOfEmbedding) else copy
