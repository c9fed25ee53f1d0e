"""One adapter of a model, as the fields of `lorakit.Adapter`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters.ranks import Factors, with_ranks
from lorakit.adapters.sharded import is_sharded
from lorakit.config import LoraConfig
from lorakit.injection.selection.plan_from_tensors import saved_tensors
from lorakit.injection.state import (
    replaced_modules,
    require_adapter,
    unwrap,
    updates_named,
)
from lorakit.layers import KernelShape, LoraEmbedding, TrainedTokens


def carried_fields(model: nn.Module, name: str) -> dict[str, Any]:
    """Return the fields of an `Adapter` that shares the model's tensors, detached.

    Raises:
        AdapterNameError: There is no such adapter.
    """
    state = require_adapter(model, name)
    config = state.configs[name]
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    companions: dict[str, Tensor] = {}
    replaced: dict[str, Tensor] = {}
    trained_tokens: dict[str, Tensor] = {}
    embeddings: set[str] = set()
    convolutions: dict[str, KernelShape] = {}
    scalings: dict[str, float] = {}
    for path, layer, update in updates_named(model, name):
        factors[path] = update.saved_factors()
        if not update.keeps_saved_factors or update.r != config.rank_for(path):
            scalings[path] = update.scaling
        for variant, tensor in zip(update.variants, update.companions(), strict=True):
            if tensor is not None:
                held = replaced if variant.is_of_base else companions
                held[f"{path}.{variant.name}"] = tensor.detach()
        shape = layer.kernel_shape(layer)
        if shape is not None:
            convolutions[path] = shape
        if isinstance(layer, LoraEmbedding):
            embeddings.add(path)
    for path, module in replaced_modules(model):
        if name not in module.trained_copies:
            continue
        trained = module.trained_copies[name]
        if isinstance(trained, TrainedTokens):
            if trained.is_named:
                trained_tokens[path] = trained.rows.detach()
            continue
        if path in config.modules_to_save:
            tensors = saved_tensors(trained)
        else:
            of_base = dict(module.named_parameters(recurse=False, remove_duplicate=False))
            copies = trained.named_parameters(recurse=False, remove_duplicate=False)
            tensors = {key: copy for key, copy in copies if copy is not of_base.get(key)}
        replaced.update({f"{path}.{key}": tensor.detach() for key, tensor in tensors.items()})
    if scalings:
        config = _config_of_saved_factors(config, factors, scalings)
    return {
        "config": config,
        "factors": factors,
        "replaced": replaced,
        "embeddings": frozenset(embeddings),
        "base_model": _base_name(model),
        "companions": companions,
        "convolutions": convolutions,
        "trained_tokens": trained_tokens,
    }


def tied_conflicts(places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> list[str]:
    """Return a problem for each value that another one would overwrite in the same memory.

    Args:
        places: An adapter's tensors in a model by key; copies of tied modules share memory.
        values: Values to copy into them, by the same keys.
    """
    first: dict[int, str] = {}
    problems: list[str] = []
    for key, place in places.items():
        if key not in values or is_sharded(place) or not place.numel():
            continue
        other = first.setdefault(place.data_ptr(), key)
        if place.shape == places[other].shape and not torch.equal(values[other], values[key]):
            problems.append(
                f"{key} and {other} differ, but are one tensor in the model; load_adapter "
                "separates them"
            )
    return problems


def _config_of_saved_factors(
    config: LoraConfig, factors: Factors, scalings: Mapping[str, float]
) -> LoraConfig:
    """Return a configuration that gives saved factors the scalings of their updates.

    Args:
        config: Configuration the adapter was added with.
        factors: Saved factors by module path.
        scalings: Scalings of updates whose saved factors differ from their parameters, or whose
            rank differs from the configuration.
    """
    ranks = {path: A.shape[-2] for path, (A, _) in factors.items()}
    alphas = {path: scalings.get(path, config.scaling_for(path)) * r for path, r in ranks.items()}
    return with_ranks(config, ranks, alphas)


def _base_name(model: nn.Module) -> str | None:
    """Return the hub id or directory that a transformers model was loaded from."""
    return getattr(unwrap(model), "name_or_path", None) or None
