"""Making all objects of an adapter for a model without touching the model.

Adding an adapter compares every tensor with its place and copies it into a layer that changes its
class. A model that is running must not change meanwhile: an adapter is built for a copy of its
modules, and `attach_adapter` then puts the finished objects into their places.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lorakit.initialization.initialize import Initializer
from lorakit.injection.detached import DetachedAdapter, DetachedCopy, DetachedUpdate, describe_copy
from lorakit.injection.inject import check_floating, describe_injection
from lorakit.injection.new_parts import (
    load_companions_,
    new_copies,
    new_token_copies,
    new_update,
)
from lorakit.injection.plans import Plans
from lorakit.injection.report import Injection
from lorakit.injection.selection.plan import InjectionPlan
from lorakit.injection.selection.sites import AdapterTensors, Site
from lorakit.injection.state import own_parameters
from lorakit.layers import AdaptedLayer, LowRankUpdate, OffsetUpdate
from lorakit.layers.copies import shallow_plain
from lorakit.layers.kinds.parameter import AdaptedParameter


def build_adapter(
    model: nn.Module,
    adapter: AdapterTensors,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    plans: Plans | None = None,
) -> tuple[DetachedAdapter, Callable[[], Injection]]:
    """Return an adapter that can be attached, and a function that says where it will act.

    Its parameters are frozen.

    Tensors that have the dtype and the device of their layer's factors are shared with the adapter,
    not copied.

    Args:
        model: A model without adapters, which stays as it is.
        adapter: An `Adapter`.
        name: A valid name.
        dtype: As in `add_adapter`.
        plans: Plans for this model and dtype, where several adapters are built for it.

    Raises:
        AdapterMismatchError, TargetError, DtypeError: As in `add_adapter`.
    """
    check_floating(name, dtype)
    tensors, planned = (plans or Plans(model, dtype)).of(adapter)
    plan, recorded = planned.plan, planned.recorded
    initializer = Initializer(model, plan.config)
    updates = [_build_update(site, plan, dtype, tensors, initializer) for site in plan.sites]
    copies = new_copies(plan, dtype, tensors) | new_token_copies(plan, dtype, tensors)
    built = DetachedAdapter(
        name,
        recorded,
        False,
        tuple(
            DetachedUpdate(site.path, update, site.adapted_class)
            for site, update in zip(plan.sites, updates, strict=True)
        ),
        tuple(_frozen_copy(model.get_submodule(path), path, made) for path, made in copies.items()),
    )
    return built, partial(describe_injection, model, plan, name, recorded, updates)


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
