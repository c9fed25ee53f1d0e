"""Changing the ranks of an adapter's updates."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from lorakit.config import LoraConfig
from lorakit.initialization import FreshUpdate, initialization_of
from lorakit.injection.state import require_adapter, require_unmerged, updates_named
from lorakit.layers import LowRankUpdate


def change_ranks(model: nn.Module, name: str, config: LoraConfig, ranks: Mapping[str, int]) -> None:
    """Give updates of an adapter fresh factors of other ranks, in place.

    What variants add stays, and so do heads. Optimizers created before hold the old factors.

    Args:
        model: A model with adapters.
        name: Name of the adapter.
        config: The adapter's new configuration; gives each update its scaling.
        ranks: The new rank by path; 0 removes the update. Layers that are not named, or have that
            rank already, keep their factors.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterStateError: The model is merged.
    """
    require_unmerged(model, "change ranks")
    state = require_adapter(model, name)
    found = [one for one in updates_named(model, name) if one[0] in ranks]
    made = {  # before anything is changed
        path: _resize_update(update, r, layer.zero_factor)
        for path, layer, update in found
        if (r := ranks[path]) and r != update.r
    }
    for path, layer, update in found:
        if ranks[path] == 0:
            del layer.updates[name]
            layer.activate(layer.active_updates)
            if not layer.updates:
                layer.restore_in_place()
        else:
            kept = made.get(path, update)
            layer.updates[name] = kept
            kept.scaling = config.scaling_for(path)
    state.configs[name] = config


def _resize_update(update: LowRankUpdate, r: int, zero_factor: Literal["A", "B"]) -> LowRankUpdate:
    """Return an update with fresh factors of another rank, otherwise as this one."""
    A, B = update.lora_A, update.lora_B
    made = type(update)(
        torch.empty(r, A.shape[1], device=A.device, dtype=A.dtype),
        torch.empty(B.shape[0], r, device=B.device, dtype=B.dtype),
        update.scaling,
        update.drop_probability,
        update.variants,
        is_training=update.training,
        **{v.name: update._parameters[v.name] for v in update.variants if v.name},
    )
    random = initialization_of(True)
    random.write_(made, *random.factors(FreshUpdate(made, zero_factor)))
    made.lora_A.requires_grad_(A.requires_grad)
    made.lora_B.requires_grad_(B.requires_grad)
    return made
