"""The parts of a new adapter: updates, copies and trained tokens, before a model carries them."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lorakit.initialization import initialization_of
from lorakit.injection.selection.plan import InjectionPlan
from lorakit.injection.selection.plan_from_tensors import saved_tensors
from lorakit.injection.selection.sites import AdapterTensors, Site
from lorakit.injection.selection.trained_tokens import TokenSite
from lorakit.injection.selection.variants import variants_of
from lorakit.injection.whole_modules import unfuse_all
from lorakit.layers import LowRankUpdate, copy_with_own, copy_with_trained_tokens, full_copy
from lorakit.layers.offload import execution_device
from lorakit.layers.updates.sliced_update import SlicedUpdate
from lorakit.layers.variants.trained_parts import TrainedBias

_HALF = (torch.float16, torch.bfloat16)


def trained_dtype(base_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype trained parameters get: float32 on a half-precision base, else the base's.

    In half precision, steps of a usual learning rate are lost to rounding.
    """
    return torch.float32 if base_dtype in _HALF else base_dtype


def new_update(
    site: Site, plan: InjectionPlan, dtype: torch.dtype | None, tensors: AdapterTensors | None
) -> LowRankUpdate:
    """Return an update for a layer, whose tensors have no values yet.

    Args:
        site: The layer.
        plan: What the adapter adds to the model.
        dtype: dtype of the tensors; None as in `add_adapter`.
        tensors: The adapter that it is made for; None if that is fresh.
    """
    module, config = site.module, plan.config
    in_features, out_features = site.adapted_class.factor_sizes(module)
    shape_A, shape_B = site.adapted_class.factor_shapes(module, site.r)
    device = execution_device(module)
    factor_dtype = dtype or trained_dtype(site.adapted_class.compute_dtype_of(module))
    variants = variants_of(config)
    variants += [TrainedBias] if site.path in plan.site_biases else []
    companions = {
        one.name: torch.empty(
            one.shape(in_features, out_features), device=device, dtype=factor_dtype
        )
        for one in variants
        if one.name
    }
    initialization = initialization_of(config.init_lora_weights)
    made = initialization.update_class(site.adapted_class, is_fresh=tensors is None)
    if site.slices is not None:
        groups = sum(site.slices)
        shape_A = (groups * site.r, in_features)
        shape_B = (groups * (out_features // len(site.slices)), site.r)
        made = partial(SlicedUpdate, site.slices)
    return made(
        torch.empty(shape_A, device=device, dtype=factor_dtype),
        torch.empty(shape_B, device=device, dtype=factor_dtype),
        site.scaling,
        config.lora_dropout,
        variants,
        is_training=getattr(module, "weight_owner", module).training,
        **companions,
    )


@torch.no_grad()
def load_companions_(update: LowRankUpdate, path: str, tensors: AdapterTensors) -> None:
    """Give the variants of an update the tensors of a file, in place."""
    for variant, place in zip(update.variants, update.companions(), strict=True):
        if place is not None:
            saved = tensors.replaced if variant.is_of_base else tensors.companions
            place.copy_(saved[f"{path}.{variant.name}"])


@torch.no_grad()
def new_copies(
    plan: InjectionPlan, dtype: torch.dtype | None, tensors: AdapterTensors | None
) -> dict[str, nn.Module]:
    """Return what an adapter trains of modules without an update, by path.

    That is a full copy of each head, copies with trained biases that share the rest, and trained
    tokens.

    Args:
        plan: What the adapter adds to the model.
        dtype: dtype of what is trained; None as in `add_adapter`.
        tensors: The values; None for those of the base.
    """
    memo: dict[int, object] = {}
    made: dict[str, nn.Module] = {}
    for path, module in plan.heads.items():
        unfuse_all(module)
        trained = full_copy(module, memo)
        for parameter in trained.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype or trained_dtype(parameter.dtype))
        made[path] = trained
    for path, module in plan.other_biases.items():
        made[path] = copy_with_own(module, ["bias"], dtype or trained_dtype(module.bias.dtype))  # type: ignore[arg-type]  # a module with a bias
    if tensors is not None:
        _separate_unlike_({path: made[path] for path in plan.heads}, tensors)
        for path, trained in made.items():
            for key, place in saved_tensors(trained).items():
                if path in plan.heads or key == "bias":
                    place.copy_(tensors.replaced[f"{path}.{key}"])
    for site in plan.tokens:
        values = None if tensors is None else tensors.trained_tokens[site.path]
        made |= _token_copies(site, dtype or trained_dtype(site.weight.dtype), values)
    return made


def _separate_unlike_(copies: Mapping[str, nn.Module], tensors: AdapterTensors) -> None:
    """Untie copies of tied modules for which an adapter has different values, as PEFT's may."""
    values_of: dict[int, Tensor] = {}
    for path, trained in copies.items():
        for name, parameter in [*trained.named_parameters(remove_duplicate=False)]:
            values = tensors.replaced[f"{path}.{name}"]
            earlier = values_of.setdefault(id(parameter), values)
            # A plan's tensors have no values to compare, and most copies share with none.
            if earlier is not values and not torch.equal(earlier, values):
                owner, _, last = name.rpartition(".")
                setattr(trained.get_submodule(owner), last, nn.Parameter(parameter.clone()))


def _token_copies(
    site: TokenSite, dtype: torch.dtype, values: Tensor | None
) -> dict[str, nn.Module]:
    """Return a module that trains the tokens for each module of a site; all share the rows."""
    weight = site.weight
    if values is None:
        values = weight[torch.tensor(site.indices, device=weight.device)]
    rows = nn.Parameter(values.to(weight.device, dtype, copy=True))
    return {
        path: copy_with_trained_tokens(
            module, site.indices, rows, is_named=path == site.path
        ).train(module.training)
        for path, module in site.modules.items()
    }
