"""Making the objects of an adapter without touching a model, and putting them into a model.

Adding an adapter compares every tensor with its place and copies it into a layer that changes its
class. A model that is running must not change meanwhile: an adapter is built for a copy of its
modules (`AdapterBuilder`), and `attach_adapter` then puts the finished objects into their places.

The adapters of a server often come from one recipe: equal settings, modules and ranks, and no
tensors beside the factors. Comparing such an adapter with the base takes longer than making its
parts, and would find what it has found for the one before, so their plan is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lorakit.config import LoraConfig
from lorakit.initialization.initialize import Initializer
from lorakit.injection.activation import adding_adapter
from lorakit.injection.inject import check_floating, check_plan, describe_injection
from lorakit.injection.new_parts import load_companions_, new_copies, new_update
from lorakit.injection.report import Injection
from lorakit.injection.selection.bypassed_layers import bypassed_layers
from lorakit.injection.selection.parameters import modules_by_path
from lorakit.injection.selection.plan import InjectionPlan
from lorakit.injection.selection.plan_from_tensors import plan_from_tensors
from lorakit.injection.selection.recorded_config import recorded_config
from lorakit.injection.selection.sites import AdapterTensors, Site
from lorakit.injection.siblings import group_siblings
from lorakit.injection.state import (
    adapted_layers,
    check_new_name,
    own_parameters,
    replaced_modules,
    require_adapter,
    require_no_other_holder,
    require_unmerged,
    unwrap,
)
from lorakit.injection.whole_modules import disable_fast_paths, unfuse_all
from lorakit.layers import (
    AdaptedLayer,
    LowRankUpdate,
    OffsetUpdate,
    plain_class_of,
    replace_in_place,
)
from lorakit.layers.copies import shallow_plain
from lorakit.layers.kinds.experts import attach, get_adapted_parameter
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.trained_tokens import TrainedTokensOfEmbedding

_Shapes = dict[str, tuple[torch.Size, torch.Size]]


@dataclass(frozen=True)
class DetachedUpdate:
    """The update of the layer at a path, which has this class while it is adapted."""

    path: str
    update: LowRankUpdate
    layer_class: type[AdaptedLayer]


@dataclass(frozen=True)
class DetachedCopy:
    """The trained copy of the module at a path."""

    path: str
    copy: nn.Module
    shared_children: tuple[str, ...]
    """Names of the children that the copy has in common with the module."""


@dataclass(frozen=True)
class DetachedAdapter:
    """An adapter that no model carries, with the objects that act in a layer."""

    name: str
    config: LoraConfig
    is_trainable: bool
    """Whether its parameters require gradients while it acts."""
    updates: tuple[DetachedUpdate, ...]
    copies: tuple[DetachedCopy, ...]
    """Its heads, modules with trained biases, and trained tokens."""


class AdapterBuilder:
    """Builds adapters for a model that stays as it is; may be used by several threads."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None):
        """Look for layers that the model does not call.

        Args:
            model: A model without adapters.
            dtype: dtype of factors and trained heads; None as in `add_adapter`.
        """
        self._model = model
        self._dtype = dtype
        self._bypassed = bypassed_layers(modules_by_path(model))
        self._last: tuple[LoraConfig, _Shapes, InjectionPlan, LoraConfig] | None = None

    def build(
        self, adapter: AdapterTensors, name: str
    ) -> tuple[DetachedAdapter, Callable[[], Injection]]:
        """Return an adapter that can be attached, and a function that says where it will act.

        Its parameters are frozen. Tensors that have the dtype and the device of their layer's
        factors are shared with the adapter, not copied.

        Raises:
            AdapterMismatchError, TargetError, DtypeError: As in `add_adapter`.
        """
        model, dtype = self._model, self._dtype
        check_floating(name, dtype)
        tensors, plan, recorded = self.plan(adapter)
        initializer = Initializer(model, plan.config)
        updates = [_build_update(site, plan, dtype, tensors, initializer) for site in plan.sites]
        sites = zip(plan.sites, updates, strict=True)
        copies = new_copies(plan, dtype, tensors).items()
        built = DetachedAdapter(
            name,
            recorded,
            False,
            tuple(DetachedUpdate(site.path, one, site.adapted_class) for site, one in sites),
            tuple(_frozen_copy(model.get_submodule(path), path, made) for path, made in copies),
        )
        return built, partial(describe_injection, model, plan, name, recorded, updates)

    def plan(self, adapter: AdapterTensors) -> tuple[AdapterTensors, InjectionPlan, LoraConfig]:
        """Return an adapter with the names of the model, its plan and the config to record.

        Raises:
            AdapterMismatchError, TargetError, DtypeError: As in `add_adapter`.
        """
        shapes, last = _shapes(adapter), self._last
        if last is not None and shapes == last[1] and adapter.config == last[0]:
            return adapter, *last[2:]
        tensors = adapter.in_names_of(self._model)
        plan = plan_from_tensors(self._model, tensors, self._bypassed)
        check_plan(plan, self._dtype)
        recorded = recorded_config(self._model, plan)
        if shapes is not None and tensors is adapter:
            self._last = adapter.config, shapes, plan, recorded
        return tensors, plan, recorded


def _shapes(adapter: AdapterTensors) -> _Shapes | None:
    """Return the shapes of an adapter's factors; None if its plan depends on anything else."""
    others = (adapter.companions, adapter.replaced, adapter.convolutions)
    if any((*others, adapter.trained_tokens, adapter.base_weights)):
        return None
    return {path: (A.shape, B.shape) for path, (A, B) in adapter.factors.items()}


def _build_update(
    site: Site,
    plan: InjectionPlan,
    dtype: torch.dtype | None,
    tensors: AdapterTensors,
    initializer: Initializer,
) -> LowRankUpdate:
    update = new_update(site, plan, dtype, tensors)
    A, B = tensors.factors[site.path]
    if isinstance(update, OffsetUpdate):
        initializer.load_(_stand_in(site), update, site.path, (A, B))
    elif type(update) is LowRankUpdate and _are_alike(update.lora_A, A, update.lora_B, B):
        update.lora_A.data, update.lora_B.data = A, B
    else:
        update.load_factors_(A, B)
    load_companions_(update, site.path, tensors)
    update.require_gradients_(False)
    return update


def _are_alike(*tensors: Tensor) -> bool:
    dtype, device = tensors[0].dtype, tensors[0].device
    return all(t.dtype == dtype and t.device == device and t.is_contiguous() for t in tensors)


def _stand_in(site: Site) -> AdaptedLayer:
    """Return the layer as it would be while it is adapted, over the same weight."""
    if isinstance(site.module, AdaptedParameter):
        return site.module
    return site.adapted_class.adapt_in_place(shallow_plain(site.module))


def _frozen_copy(module: nn.Module, path: str, made: nn.Module) -> DetachedCopy:
    shared = own_parameters(module)
    for parameter in made.parameters():
        if id(parameter) not in shared and parameter.is_floating_point():
            parameter.requires_grad_(False)
    return _describe_copy(module, path, made)


def adapter_in_place(model: nn.Module, name: str) -> DetachedAdapter:
    """Describe an adapter of a model that keeps it, by the very objects that act there.

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
        _describe_copy(module, path, module.trained_copies[name])
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
        if newly_adapted or adapter.copies:
            disable_fast_paths(model)


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


def _describe_copy(module: nn.Module, path: str, copy: nn.Module) -> DetachedCopy:
    """Describe a copy of the base's module that was made for an adapter."""
    children = _holding_children(copy)._modules
    shared = (n for n, child in children.items() if child is module._modules.get(n, copy))
    return DetachedCopy(path, copy, tuple(shared))


def _holding_children(copy: nn.Module) -> nn.Module:
    """Return the part of a copy that may have children of the base's module."""
    return copy.table if isinstance(copy, TrainedTokensOfEmbedding) else copy
