"""Making all objects of an adapter for a model without touching the model.

Adding an adapter compares every tensor with its place and copies it into a layer that changes its
class. A model that is running must not change meanwhile: an adapter is built for a copy of its
modules, and `attach_adapter` then puts the finished objects into their places.

The adapters of a server often come from one recipe: equal settings, modules and ranks, and no
tensors beside the factors. Comparing such an adapter with the base takes longer than making its
parts, and would find what it has found for the one before, so their plan is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lorakit.config import LoraConfig
from lorakit.initialization.initialize import Initializer
from lorakit.injection.detached import DetachedAdapter, DetachedCopy, DetachedUpdate, describe_copy
from lorakit.injection.inject import check_floating, check_plan, describe_injection
from lorakit.injection.new_parts import load_companions_, new_copies, new_update
from lorakit.injection.report import Injection
from lorakit.injection.selection.checks.bypassed_layers import bypassed_layers
from lorakit.injection.selection.parameters import modules_by_path
from lorakit.injection.selection.plan import InjectionPlan
from lorakit.injection.selection.plan_from_tensors import plan_from_tensors
from lorakit.injection.selection.recorded_config import recorded_config
from lorakit.injection.selection.sites import AdapterTensors, Site
from lorakit.injection.state import own_parameters
from lorakit.layers import AdaptedLayer, LowRankUpdate, OffsetUpdate
from lorakit.layers.copies import shallow_plain
from lorakit.layers.kinds.parameter import AdaptedParameter

_Shapes = dict[str, tuple[torch.Size, torch.Size]]


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

        Args:
            adapter: An `Adapter`.
            name: A valid name.

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
    return describe_copy(module, path, made)
