"""What training all layers, the upper half or the upper quarter costs, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorakit.errors import LorakitError
from lorakit.models.pretrained import auto_model
from lorakit.models.skeleton import load_skeleton
from lorakit.planning.memory_plan import MemoryPlan, plan
from lorakit.training.frozen_part.blocks import SHARES, block_lists, layers_at
from lorakit.training.tasks.base import loading_options

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe

_KEY = "lora.layers_to_transform"


@dataclass(frozen=True)
class DepthPlan:
    """Cost of adapting some of the upper layers; times are shares of an epoch of all layers."""

    layers: int
    """Number of adapted layers."""
    first_epoch: float
    """The frozen layers are computed and kept."""
    later_epoch: float
    """The frozen layers are read."""
    needed_bytes: int
    """Memory of the process with its tensors, in an epoch that computes all layers."""
    cache_bytes: int | None
    """Kept outputs of the training examples; None if their number is unknown."""


def depths(recipe: Recipe, unchanged: MemoryPlan, **options: Any) -> dict[str, DepthPlan]:
    """Plan a recipe that adapts all layers, the upper half and the upper quarter.

    Times count products with weights: each layer and the output layer forward, the adapted layers
    and the output layer backward. Attention scores, the adapter and evaluations are left out.

    Args:
        recipe: The recipe.
        unchanged: Its plan.
        options: Options of `plan`.

    Returns: Plans by depth. None for recipes whose frozen part is not kept: with an objective,
        checkpointing, an adapter to start from or `frozen_part.cache_bytes: 0`; for models that do
        not have one list of layers; and for a single layer.
    """
    training = recipe.training
    checkpoints = training.get("gradient_checkpointing") or training.get("activation_checkpointing")
    has_other_way = recipe.objective is not None or recipe.start_from is not None
    if has_other_way or checkpoints or not recipe.frozen_part.cache_bytes:
        return {}
    try:
        model = load_skeleton(auto_model(recipe.task), recipe.model, **loading_options(recipe))
    except LorakitError:  # the plan itself says what is wrong
        return {}
    lists = block_lists(model)
    if len(lists) != 1:
        return {}
    blocks = lists[0][1]
    block = sum(p.numel() for p in blocks.parameters() if p.ndim > 1) / len(blocks)
    head: Any = model.get_output_embeddings()
    head_size = 0 if head is None else head.weight.numel()
    states = _states_bytes(recipe, unchanged, model)
    found: dict[str, DepthPlan] = {}
    for depth in SHARES:
        adapted = len(layers_at(depth, len(blocks)))
        is_all = adapted == len(blocks)
        if any(other.layers == adapted for other in found.values()):
            continue
        made = _plan_depth(
            recipe, unchanged, options, None if is_all else layers_at(depth, len(blocks))
        )
        if made is None:
            return {}
        whole = 2 * (len(blocks) * block + head_size)
        upper = 2 * (adapted * block + head_size)
        below = (len(blocks) - adapted) * block
        found[depth] = DepthPlan(
            layers=adapted,
            first_epoch=(upper + below) / whole,
            later_epoch=upper / whole,
            needed_bytes=made.peak_bytes + unchanged.process_bytes,
            cache_bytes=0 if is_all else states,
        )
    return found if len(found) > 1 else {}


def _plan_depth(
    recipe: Recipe,
    unchanged: MemoryPlan,
    options: Mapping[str, Any],
    layers: tuple[int, ...] | None,
) -> MemoryPlan | None:
    if layers == recipe.lora.layers_to_transform:
        return unchanged
    try:
        return plan(recipe.with_changes({_KEY: layers}, "the plan"), **options)
    except LorakitError:  # such as patterns that match other layers only
        return None


def _states_bytes(recipe: Recipe, unchanged: MemoryPlan, model: Any) -> int | None:
    """Return the bytes of hidden states of all training examples, without padding."""
    if unchanged.tokens is None or not unchanged.epochs:
        return None
    sizes: Any = model.config.get_text_config()
    named = recipe.dtype if recipe.dtype not in ("auto", "saved") else str(sizes.dtype)
    if recipe.quantization is not None:
        named = str(recipe.quantization.compute_dtype or named)
    dtype = getattr(torch, named.removeprefix("torch."), torch.float32)
    return round(unchanged.tokens / unchanged.epochs) * sizes.hidden_size * dtype.itemsize
