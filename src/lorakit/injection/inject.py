"""Adding an adapter to a model."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from lorakit.config import LoraConfig
from lorakit.errors import DtypeError, TargetError
from lorakit.initialization.initialize import Initializer
from lorakit.injection.activation import activate, adding_adapter, restoring_activation
from lorakit.injection.new_parts import load_companions_, new_copies, new_update
from lorakit.injection.report import Injection, Match
from lorakit.injection.selection.adapted_classes import describe
from lorakit.injection.selection.checks import check_room
from lorakit.injection.selection.peft_names import unread_by_peft
from lorakit.injection.selection.plan import InjectionPlan, plan_from_config
from lorakit.injection.selection.plan_from_tensors import plan_from_tensors
from lorakit.injection.selection.recorded_config import recorded_config
from lorakit.injection.selection.sites import AdapterTensors, Site
from lorakit.injection.selection.variants import variants_of
from lorakit.injection.siblings import group_siblings
from lorakit.injection.state import (
    check_new_name,
    create_state,
    require_no_other_holder,
    require_unmerged,
    unwrap,
)
from lorakit.injection.whole_modules import disable_fast_paths
from lorakit.layers import AdaptedLayer, LowRankUpdate, replace_in_place
from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.layers.class_swap import swap_class
from lorakit.layers.hooks import has_foreign_forward
from lorakit.layers.kinds.experts import attach
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.offload import is_offloaded, weights_in_place


def add_adapter(
    model: nn.Module,
    config: LoraConfig | AdapterTensors,
    name: str = "default",
    *,
    trainable: bool = True,
    dtype: torch.dtype | None = None,
    max_rank: int | None = None,
) -> Injection:
    """Add an adapter to a model in place and make it the one that acts.

    The model stays the same object: adapted layers change their class, base parameters keep
    their names and identity and no longer require gradients. A fresh adapter changes no output,
    as its update is zero. If an error occurs, the model stays unchanged.

    Args:
        model: Any torch module.
        config: A configuration for a fresh adapter, or an `Adapter` whose tensors are copied.
        name: Letters, digits, "_" and "-".
        trainable: Whether its parameters require gradients while it acts.
        dtype: dtype of lora_A, lora_B and trained heads; None takes float32 on a half-precision
            base and the base's dtype otherwise.
        max_rank: The largest rank of the adapters that `hotswap_adapter` will put here instead:
            factors get this rank, zero beyond their own. None reserves nothing.

    Returns: The modules that matched, with counts; `print` shows them as a table.

    Raises:
        TargetError: A pattern selects nothing, or a layer that cannot be adapted.
        ShapeError: A rank is larger than its layer.
        QuantizationError, MissingFileError: "loftq" needs a quantized base and the weights from
            before quantization.
        AdapterNameError: The name is taken or malformed.
        AdapterMismatchError: The adapter's tensors do not fit this base.
        AdapterStateError: The model is merged, or its adapters were added through another object.
        ConfigError: `max_rank` is smaller than a rank, or cannot be reserved.
        DtypeError: `dtype` is not a floating point type, or a quantized base cannot use it.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.
    """
    model = unwrap(model)
    require_unmerged(model, "add an adapter")
    require_no_other_holder(model)
    check_new_name(model, name)
    check_floating(name, dtype)
    tensors = None
    if isinstance(config, LoraConfig):
        plan = plan_from_config(model, config)
    else:
        tensors = config.in_names_of(model)
        plan = plan_from_tensors(model, tensors)
    check_plan(plan, dtype)
    if max_rank is not None:
        check_room(plan.config, plan.sites, max_rank)

    recorded = recorded_config(model, plan)
    state = create_state(model)
    initializer = Initializer(model, plan.config)
    with restoring_activation(model), adding_adapter(model, name, recorded, trainable):
        updates = [
            _add_update(site, plan, name, dtype, tensors, initializer) for site in plan.sites
        ]
        for update in updates:
            update.reserve_(max_rank or 0)
        for path, made in new_copies(plan, dtype, tensors).items():
            replace_in_place(model.get_submodule(path)).trained_copies[name] = made
        group_siblings(model, [site.path for site in plan.sites])
        activate(model, state, (name,))
        disable_fast_paths(model)
        return describe_injection(model, plan, name, recorded, updates)


def check_floating(name: str, dtype: torch.dtype | None) -> None:
    """Refuse a dtype for an adapter's factors that is not a floating point type.

    Raises:
        DtypeError: It is not.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise DtypeError(
            f"Cannot add adapter {name!r}: got {dtype} for its factors, expected a floating "
            "point dtype. Leave dtype out to take the usual one."
        )


def check_plan(plan: InjectionPlan, dtype: torch.dtype | None) -> None:
    """Refuse what a plan cannot do with the modules of its model.

    Raises:
        TargetError: The class of a module cannot be swapped, or its bias is offloaded.
        DtypeError: A quantized layer would have to cast the factors in every pass.
    """
    candidates = [getattr(site.module, "weight_owner", site.module) for site in plan.sites]
    candidates += list(plan.heads.values())
    candidates += list(plan.other_biases.values())
    candidates += [module for site in plan.tokens for module in site.modules.values()]
    for module in candidates:
        if has_foreign_forward(module):
            swap_class(module, type(module))
    for path, module in plan.other_biases.items():
        if is_offloaded(module):
            raise TargetError(
                f"Cannot train the bias of {path}: accelerate offloads its weights, expected them "
                "in memory. Use bias='none' or 'lora_only', or load the base without offloading."
            )
    for site in plan.sites if dtype is not None else ():
        compute = site.adapted_class.compute_dtype_of(site.module)
        if bits_of(site.module) is not None and dtype not in (torch.float32, compute):
            raise DtypeError(
                f"Cannot add factors of {dtype} to {site.path}: its weight is quantized and "
                f"computes in {compute}, expected float32 or {compute}. Leave dtype out to take "
                "float32."
            )


def _add_update(
    site: Site,
    plan: InjectionPlan,
    name: str,
    dtype: torch.dtype | None,
    tensors: AdapterTensors | None,
    initializer: Initializer,
) -> LowRankUpdate:
    module = site.module
    update = new_update(site, plan, dtype, tensors)
    if isinstance(module, AdaptedParameter):
        attach(module)
    elif not isinstance(module, AdaptedLayer):
        module = site.adapted_class.adapt_in_place(module)
    if tensors is None:
        initializer.initialize_(module, update, site.path)
        for variant, place in zip(update.variants, update.companions(), strict=True):
            if place is not None:
                with torch.no_grad(), weights_in_place(module):
                    place.copy_(variant.initial(module, update))
    else:
        initializer.load_(module, update, site.path, tensors.factors[site.path])
        load_companions_(update, site.path, tensors)
    module.updates[name] = update
    return update


def describe_injection(
    model: nn.Module,
    plan: InjectionPlan,
    name: str,
    config: LoraConfig,
    updates: Sequence[LowRankUpdate],
) -> Injection:
    """Return what an adapter adds to a model."""
    matches = tuple(
        Match(
            site.path,
            describe(site.module),
            *site.adapted_class.factor_sizes(site.module),
            site.r,
            site.scaling,
            _companion_parameters(site, config),
            getattr(site.module, "experts", 1),
            site.slices,
        )
        for site in plan.sites
    )
    biases = sorted(f"{path}.bias" for path in plan.site_biases)
    biases += [f"{path}.bias" for path in plan.other_biases]
    factors = {str(update.lora_A.dtype).removeprefix("torch.") for update in updates}
    weights = {site.adapted_class.base_dtype_name(site.module) for site in plan.sites}
    note = unread_by_peft(model, config, (site.path for site in plan.sites))
    return Injection(
        name=name,
        config=config,
        matches=matches,
        heads=tuple(plan.heads),
        biases=tuple(biases),
        skipped=tuple(plan.skipped),
        tokens=tuple((tuple(site.modules), len(site.indices)) for site in plan.tokens),
        lowered=tuple(plan.lowered),
        factor_dtype=_dtype_names(factors),
        base_dtype=_dtype_names(weights),
        notes=(*plan.notes, *([] if note is None else [note])),
    )


def _companion_parameters(site: Site, config: LoraConfig) -> int:
    sizes = site.adapted_class.factor_sizes(site.module)
    return sum(math.prod(v.shape(*sizes)) for v in variants_of(config) if v.name)


def _dtype_names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
