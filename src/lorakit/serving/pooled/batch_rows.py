"""Rows of a batch: their tokens padded to one length, and each with its adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorakit.injection import adapter_names, adapter_rows

Columns = Mapping[str, Sequence[int]]
"""What a tokenizer returns for one text: input_ids, attention_mask and so on."""


def pad_rows(model: PreTrainedModel, rows: Sequence[Columns]) -> dict[str, Tensor]:
    """Return the columns of rows as tensors (rows, tokens), padded on the right."""
    length = max(len(row["input_ids"]) for row in rows)
    pad = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    fills = {"input_ids": pad}
    return {
        name: torch.tensor(
            [[*row[name], *[fills.get(name, 0)] * (length - len(row[name]))] for row in rows],
            device=model.device,
        )
        for name in rows[0]
    }


@contextmanager
def running_rows(model: PreTrainedModel, adapters: Sequence[str | None]) -> Iterator[None]:
    """Run a batch without gradients, each row with its adapter or None, inside the block."""
    with torch.no_grad():
        if not adapter_names(model):
            yield
            return
        with adapter_rows(model, adapters):
            yield
