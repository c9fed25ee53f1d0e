"""The loss of each text of a batch, so that two models can be compared text by text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.training.losses.counted_labels import CountedLabels


def losses_by_text(losses: Tensor, counted: CountedLabels, batch: Mapping[str, Any]) -> Tensor:
    """Add up the losses of tokens text by text.

    A text is a batch row, or in packed rows what begins with position 0. Padding after packed texts
    makes texts without labels.

    Args:
        losses: Losses of the labels that count, (labels,).
        counted: These labels.
        batch: The batch they are from.

    Returns: Summed loss and number of labels of each text, (texts, 2), float32 at least.
    """
    count, text_of = _texts(batch, counted.positions.to(losses.device))
    sums = torch.zeros(count, 2, dtype=losses.dtype, device=losses.device)
    return sums.index_add_(0, text_of, torch.stack([losses, torch.ones_like(losses)], 1))


def losses_from_logits(
    outputs: Any, batch: Mapping[str, Any], counted: CountedLabels
) -> Tensor | None:
    """Return what `losses_by_text` does, from the logits of all tokens.

    Args:
        outputs: The outputs of a model.
        batch: The batch.
        counted: The labels that count.

    Returns: None if the outputs have no logits (batch, tokens, vocabulary).
    """
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != batch["labels"].shape:
        return None
    if logits.ndim != 3:
        return None
    chosen = counted.select(logits)
    wide = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    losses = F.cross_entropy(wide, counted.targets.to(wide.device), reduction="none")
    return losses_by_text(losses, counted, batch)


def _texts(batch: Mapping[str, Any], positions: Tensor) -> tuple[int, Tensor]:
    """Return the number of texts of a batch, and the text of each position, (labels,)."""
    rows, tokens = batch["labels"].shape
    starts = batch.get("position_ids")
    if starts is None or starts.shape != (rows, tokens):
        return rows, positions // tokens
    text_of = (starts.to(positions.device) == 0).reshape(-1).cumsum(0) - 1
    return int(text_of[-1]) + 1, text_of[positions]
