"""Exchanging an adapter's weights while the model, and what was compiled of it, stays as it is."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.carried import view_of
from lorakit.adapters.like_layers import require_like_layers
from lorakit.adapters.rewritten import require_own_start
from lorakit.adapters.token_rows import differing_tokens
from lorakit.errors import AdapterMismatchError, first_few
from lorakit.injection.older_names import in_names_of
from lorakit.injection.state import adapted_layers, require_adapter, require_unmerged, unwrapped
from lorakit.layers import LowRankUpdate


@torch.no_grad()
def hotswap_adapter(model: nn.Module, adapter: Adapter | str | Path, name: str = "default") -> None:
    """Put another adapter's weights into the place of one that a model carries.

    Values are copied into the parameters that are there, so a compiled model goes on without
    compiling anew, and memory does not grow. The place keeps its rank, scaling and dropout:
    a smaller rank is padded with zeros, and another scaling is multiplied into lora_B, so the
    update is the new adapter's. Layers that the new adapter does not adapt get an update of zero.

    Args:
        model: A model with adapters, compiled or not.
        adapter: The new adapter, or where to load it from.
        name: The adapter whose place it takes; make that with the largest rank you will need.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterMismatchError: The new adapter adapts layers that the place does not, has a larger
            rank, or trains other heads, biases or tokens; nothing is copied then.
        AdapterStateError: The model is merged.
        MissingFileError: There is no adapter at that path.
        AdapterFileError: A file is damaged or uses a feature lorakit does not have.

    Example:
        >>> from lorakit import Adapter, LoraConfig, add_adapter
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> _ = add_adapter(model, LoraConfig(r=2, target_modules=["0"]))
        >>> hotswap_adapter(model, Adapter.from_model(model))
    """
    require_unmerged(model, "exchange an adapter's weights")
    state = require_adapter(model, name)
    new = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
    new = in_names_of(unwrapped(model), new)
    require_own_start(new, "exchange", "the new adapter")
    place = view_of(model, name)
    _check(place, new, name)
    require_like_layers(model, new, name)
    slot = state.configs[name]
    layers = dict(adapted_layers(model))
    for path, (A, B) in place.factors.items():
        if path in new.factors:
            new_A, new_B = new.factors[path]
            ratio = new.config.scaling_for(path) / slot.scaling_for(path)
            missing = A.shape[-2] - new_A.shape[-2]
            A.copy_(F.pad(new_A, (0, 0, 0, missing)))
            B.copy_(F.pad(new_B if ratio == 1 else new_B * ratio, (0, missing)))
        else:
            B.zero_()
        update: LowRankUpdate = layers[path].updates[name]  # type: ignore[assignment]
        if not update.keeps_saved_factors:
            update.load_factors_(A, B)
    for path, magnitude in place.magnitudes.items():
        magnitude.copy_(new.magnitudes[path])
    for path, rows in place.token_rows.items():
        rows.copy_(new.token_rows[path])
    for key, tensor in place.replaced.items():
        tensor.copy_(new.replaced[key])


def _check(place: Adapter, new: Adapter, name: str) -> None:
    """Collect everything that does not fit and raise once."""
    problems = [
        f"it adapts {path}, which {name!r} does not"
        for path in new.factors
        if path not in place.factors
    ]
    for path, (A, B) in place.factors.items():
        if path in new.factors:
            problems += _misfits(path, (A, B), new.factors[path])
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
            f"The new adapter cannot take the place of {name!r}: {first_few(problems, 1)}. Add an "
            "adapter with the targets and the largest rank of all that will take its place, or "
            "load the new one under a name of its own."
        )


def _misfits(path: str, place: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> list[str]:
    (A, B), (new_A, new_B) = place, new
    if new_A.shape[:-2] != A.shape[:-2]:
        return [f"{path} stacks {tuple(new_A.shape[:-2])} matrices, not {tuple(A.shape[:-2])}"]
    sizes, expected = (new_A.shape[-1], new_B.shape[-2]), (A.shape[-1], B.shape[-2])
    if sizes != expected:
        return [f"{path} is from {sizes[0]} to {sizes[1]}, expected {expected[0]} to {expected[1]}"]
    if new_A.shape[-2] > A.shape[-2]:
        return [f"{path} has rank {new_A.shape[-2]}, expected at most {A.shape[-2]}"]
    return []
