"""Exchanging an adapter's weights while the model, and what was compiled of it, stays as it is."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.on_model.compatible_layers import require_like_layers
from lorakit.adapters.on_model.save_and_load import view_of
from lorakit.adapters.operations.requirements import require_base_independent
from lorakit.adapters.trained_tokens import differing_tokens
from lorakit.config import LoraConfig
from lorakit.errors import AdapterMismatchError, first_few
from lorakit.injection.selection.older_names import in_names_of
from lorakit.injection.state import adapted_layers, require_adapter, require_unmerged, unwrapped
from lorakit.layers import LowRankUpdate


@torch.no_grad()
def hotswap_adapter(model: nn.Module, adapter: Adapter | str | Path, name: str = "default") -> None:
    """Put another adapter's weights into the place of one that a model carries.

    Values are copied into the parameters that are there, so a compiled model is not compiled again,
    and memory does not grow. The place keeps its shapes, scaling and dropout: a smaller rank is
    padded with zeros, and another scaling is multiplied into lora_B, so the update is the new
    adapter's. Layers that the new adapter does not adapt get an update of zero. What is saved from
    the place has the new adapter's ranks.

    A place takes what it has room for: add it with the modules of all adapters that are to come
    and their largest rank, `add_adapter(model, config, name, max_rank=64, trainable=False)`.

    Args:
        model: A model with adapters, compiled or not.
        adapter: The new adapter, or where to load it from.
        name: The adapter whose place it takes.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterMismatchError: The new adapter adapts layers that the place does not, has a larger
            rank, or trains other heads, biases or tokens; nothing is copied then.
        AdapterStateError: The model is merged.
        MissingFileError: There is no adapter at that path.
        AdapterFileError: A file is damaged or uses a feature lorakit does not have.

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
    new = in_names_of(unwrapped(model), new)
    require_base_independent(new, "exchange", "the new adapter")
    place = view_of(model, name)
    updates: dict[str, LowRankUpdate] = {
        path: layer.updates[name]  # type: ignore[misc]
        for path, layer in adapted_layers(model)
        if name in layer.updates
    }
    _check(place, updates, new, name)
    require_like_layers(model, new, name)
    factors = _factors_for(updates, place, new, state.configs[name])
    tensors = [(tensor, new.magnitudes[path]) for path, tensor in place.magnitudes.items()]
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
    """Return what each update of the place gets, for the scaling that it has.

    Args:
        updates: The updates of the place by path.
        place: Their factors as files hold them.
        new: The adapter that takes the place.
        slot: What the place was added with.
    """
    factors = {}
    for path, update in updates.items():
        A, B = place.factors[path]
        if path not in new.factors:
            r = 1 if update.keeps_saved_factors else A.shape[-2]
            factors[path] = (torch.zeros_like(A[..., :r, :]), torch.zeros_like(B[..., :r]))
            continue
        new_A, new_B = (
            own.to(old.device) for own, old in zip(new.factors[path], (A, B), strict=True)
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
    # A magnitude of its own says that a layer changes nothing only together with the base's norms.
    problems += [
        f"it has {'a' if path in new.magnitudes else 'no'} magnitude (use_dora) at {path}"
        for path in dict.fromkeys((*place.factors, *new.factors))
        if (path in place.magnitudes) != (path in new.magnitudes)
    ]
    problems += [f"it trains {key}" for key in new.replaced if key not in place.replaced]
    problems += [f"it lacks {key}" for key in place.replaced if key not in new.replaced]
    problems += [
        f"{key} is {tuple(new.replaced[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in place.replaced.items()
        if key in new.replaced and new.replaced[key].shape != tensor.shape
    ]
    problems += differing_tokens(place, new, name)
    if problems:
        raise AdapterMismatchError(
            f"The new adapter cannot take the place of {name!r}: {first_few(problems, 1)}. Add the "
            "place with the targets of all adapters that will take it and their largest rank, "
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
        return [f"{path} is from {sizes[0]} to {sizes[1]}, expected {expected[0]} to {expected[1]}"]
    if new_A.shape[-2] > room:
        return [f"{path} has rank {new_A.shape[-2]}, expected at most {room}"]
    return []
