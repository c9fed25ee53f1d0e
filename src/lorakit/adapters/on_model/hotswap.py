"""Exchanging the weights of an adapter without changing or recompiling the model."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.carried_fields import tied_conflicts
from lorakit.adapters.older_names import in_names_of
from lorakit.adapters.on_model.save_and_load import view_of
from lorakit.adapters.operations.requirements import require_base_independent
from lorakit.adapters.trained_tokens import differing_tokens
from lorakit.config import LoraConfig
from lorakit.errors import AdapterMismatchError, first_few
from lorakit.injection.state import (
    require_adapter,
    require_unmerged,
    unwrap,
    updates_named,
)
from lorakit.layers import AdaptedLayer, LowRankUpdate
from lorakit.layers.variants.table import with_companions


@torch.no_grad()
def hotswap_adapter(model: nn.Module, adapter: Adapter | str | Path, name: str = "default") -> None:
    """Replace the weights of a model's adapter by those of another one.

    Values are copied into the existing parameters, so a compiled model is not recompiled, and
    memory does not grow. The adapter in the model keeps its shapes, scaling and dropout: a smaller
    rank is padded with zeros, and the ratio of scalings is multiplied into lora_B, so the update is
    that of the new adapter. Layers that the new adapter does not adapt get an update of zero. When
    saved, the adapter has the new ranks.

    The new adapter must fit: add the first one with the modules of all later adapters and their
    largest rank, `add_adapter(model, config, name, max_rank=64, trainable=False)`.

    Args:
        model: A model with adapters, compiled or not.
        adapter: The new adapter, or the path to load it from.
        name: Name of the adapter to replace.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterMismatchError: The new adapter adapts other layers, has a larger rank, or trains
            other heads, biases or tokens; nothing is copied.
        AdapterStateError: The model is merged.
        MissingFileError: There is no adapter at that path.
        AdapterFileError: A file is damaged or uses a feature that lorakit does not support.

    Example:
        >>> from lorakit import Adapter, LoraConfig, add_adapter
        >>> model, other = (torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(2))
        >>> _ = add_adapter(model, LoraConfig(r=2, target_modules=["0"]), max_rank=4)
        >>> _ = add_adapter(other, LoraConfig(r=3, target_modules=["0"]))
        >>> hotswap_adapter(model, Adapter.from_model(other))
    """
    require_unmerged(model, "exchange an adapter's weights")
    state = require_adapter(model, name)
    new = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
    new = in_names_of(unwrap(model), new)
    require_base_independent(new, "exchange", "the new adapter")
    place = view_of(model, name)
    updates = {path: update for path, _, update in updates_named(model, name)}
    _check(place, updates, new, name)
    require_like_layers(model, new, name)
    factors = _factors_for(updates, place, new, state.configs[name])
    tensors = [(tensor, new.companions[key]) for key, tensor in place.companions.items()]
    tensors += [(tensor, new.trained_tokens[path]) for path, tensor in place.trained_tokens.items()]
    tensors += [(tensor, new.replaced[key]) for key, tensor in place.replaced.items()]
    before = {path: tuple(t.clone() for t in place.factors[path]) for path in updates}
    copies = [tensor.clone() for tensor, _ in tensors]
    try:
        for path, update in updates.items():
            _exchange(update, *factors[path])
        for tensor, value in tensors:
            tensor.copy_(value)
    except BaseException:
        for path, update in updates.items():
            _exchange(update, *before[path])
        for (tensor, _), value in zip(tensors, copies, strict=True):
            tensor.copy_(value)
        raise


def _exchange(update: LowRankUpdate, A: Tensor, B: Tensor) -> None:
    if update.keeps_saved_factors:
        update.exchange_factors_(A, B)
    else:
        update.load_factors_(A, B)


def _factors_for(
    updates: Mapping[str, LowRankUpdate], place: Adapter, new: Adapter, slot: LoraConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the new factors of each update, for the scaling that it keeps.

    Args:
        updates: The updates in the model by path.
        place: The adapter in the model.
        new: The adapter that replaces it.
        slot: Configuration of the adapter in the model.
    """
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for path, update in updates.items():
        A, B = place.factors[path]
        if path not in new.factors:
            r = 1 if update.keeps_saved_factors else A.shape[-2]
            factors[path] = (torch.zeros_like(A[..., :r, :]), torch.zeros_like(B[..., :r]))
            continue
        new_A, new_B = (
            factor.to(old.device) for factor, old in zip(new.factors[path], (A, B), strict=True)
        )
        ratio = new.config.scaling_for(path) / slot.scaling_for(path)
        new_B = new_B if ratio == 1 else new_B * ratio
        if not update.keeps_saved_factors:
            missing = A.shape[-2] - new_A.shape[-2]
            new_A, new_B = F.pad(new_A, (0, 0, 0, missing)), F.pad(new_B, (0, missing))
        factors[path] = (new_A, new_B)
    return factors


def _check(place: Adapter, updates: Mapping[str, LowRankUpdate], new: Adapter, name: str) -> None:
    """Collect everything that does not fit and raise once."""
    problems = [
        f"it adapts {path}, which {name!r} does not"
        for path in new.factors
        if path not in place.factors
    ]
    for path, pair in place.factors.items():
        if path in new.factors:
            room = pair[0].shape[-2] + updates[path].spare_rank
            problems += _misfits(path, pair, new.factors[path], room)
    # A layer without an update still has companions, such as one that depends on the base.
    problems += [
        f"it has {'a' if key in new.companions else 'no'} {variant.name} ({variant.setting}) at "
        f"{path}"
        for variant in with_companions()
        for path in dict.fromkeys((*place.factors, *new.factors))
        if ((key := f"{path}.{variant.name}") in place.companions) != (key in new.companions)
    ]
    problems += [f"it trains {key}" for key in new.replaced if key not in place.replaced]
    problems += [f"it lacks {key}" for key in place.replaced if key not in new.replaced]
    problems += [
        f"{key} is {tuple(new.replaced[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in place.replaced.items()
        if key in new.replaced and new.replaced[key].shape != tensor.shape
    ]
    problems += tied_conflicts(place.replaced, new.replaced)
    problems += differing_tokens(place, new, name)
    if problems:
        raise AdapterMismatchError(
            f"The new adapter cannot replace {name!r}: {first_few(problems, 1)}. Add the first "
            "adapter with the targets of all later ones and their largest rank, "
            "add_adapter(model, LoraConfig(target_modules=[...]), name, max_rank=...), or load "
            "the new one under another name."
        )


def _misfits(
    path: str, place: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], room: int
) -> list[str]:
    (A, B), (new_A, new_B) = place, new
    if new_A.shape[:-2] != A.shape[:-2]:
        return [f"{path} stacks {tuple(new_A.shape[:-2])} matrices, not {tuple(A.shape[:-2])}"]
    sizes, expected = (new_A.shape[-1], new_B.shape[-2]), (A.shape[-1], B.shape[-2])
    if sizes != expected:
        return [f"{path} maps {sizes[0]} to {sizes[1]}, expected {expected[0]} to {expected[1]}"]
    if new_A.shape[-2] > room:
        return [f"{path} has rank {new_A.shape[-2]}, expected at most {room}"]
    return []


def require_like_layers(model: nn.Module, new: Adapter, name: str) -> None:
    """Reject factors with another kernel or other blocks than those they replace.

    Args:
        model: A model with adapters.
        new: The adapter with the new factors.
        name: Name of the adapter in the model.

    Raises:
        AdapterMismatchError: Names the first such module, and counts the others.
    """
    problems = [
        problem
        for path, layer, update in updates_named(model, name)
        if path in new.factors and (problem := _layer_problem(path, layer, update, new))
    ]
    if problems:
        more = f"; {len(problems) - 1} more" if len(problems) > 1 else ""
        raise AdapterMismatchError(
            f"The new adapter cannot replace {name!r}: {problems[0]}{more}. Load it under another "
            "name."
        )


def _layer_problem(
    path: str, layer: AdaptedLayer, update: LowRankUpdate, new: Adapter
) -> str | None:
    if layer.kernel_shape(layer) != new.convolutions.get(path):
        return f"{path} has another kernel, or other groups of channels"
    misfit = update.misfit(*new.factors[path])
    return None if misfit is None else f"{path} {misfit}"
