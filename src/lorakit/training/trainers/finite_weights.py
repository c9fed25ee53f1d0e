"""Whether what is about to be saved is of use: the last optimizer step has no loss after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorakit.adapters import Adapter
from lorakit.distributed.processes import all_agree
from lorakit.errors import TrainingError, first_few
from lorakit.recipes.usable_numbers import LARGEST_WEIGHT, has_usable_numbers
from lorakit.training.trainers.first_step import advice_for_nan


def require_sound(adapter: Adapter, step: int, optimizer: Any = None) -> None:
    """Refuse to save what the last optimizer step has made useless.

    Args:
        adapter: As it would be saved.
        step: Optimizer steps done so far.
        optimizer: Whose state would be saved with it; None saves none.

    Raises:
        TrainingError: A tensor holds NaN, infinities, or numbers that no training comes to.
    """
    pairs = {
        f"{path}.lora_{n}": t
        for path, ab in adapter.factors.items()
        for n, t in zip("AB", ab, strict=True)
    }
    others = {**adapter.magnitudes, **adapter.replaced, **adapter.trained_tokens}
    _require("adapter", {**pairs, **others}, step)
    if optimizer is not None:
        all_agree(lambda: _require("optimizer's state", _states(optimizer), step))


def _require(what: str, tensors: Mapping[str, Tensor], step: int) -> None:
    check = has_usable_numbers if what == "adapter" else _is_finite
    broken = sorted(name for name, tensor in tensors.items() if not check(tensor))
    if broken:
        raise TrainingError(
            f"The {what} is of no use after step {step}: {len(broken)} of its {len(tensors)} "
            f"tensors ({first_few(broken)}) hold NaN, infinity or numbers beyond "
            f"{LARGEST_WEIGHT:g}, expected numbers that give a loss. It is not saved. "
            + advice_for_nan(step)
        )


def _states(optimizer: Any) -> dict[str, Tensor]:
    """Return this process's part of an optimizer's state."""
    return {
        f"{key} of parameter {number}": getattr(value, "_local_tensor", value)
        for number, state in enumerate(optimizer.state.values())
        for key, value in state.items()
        if torch.is_tensor(value)
    }


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
