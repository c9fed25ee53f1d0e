"""Rows of a batch, each with its adapter, and one forward pass: logits of a head, or vectors."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

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


@dataclass(frozen=True)
class ForwardItem:
    """One text for a forward pass.

    Attributes:
        columns: The tokenizer's columns of the text.
        adapter: Name under which the model carries the adapter; None for the base alone.
        wants: The head's logits, or the mean of the last hidden states.
    """

    columns: Columns
    adapter: str | None
    wants: Literal["logits", "vector"]

    @property
    def batch_key(self) -> Hashable:
        """Items that want the same, of the same columns, can share a batch."""
        return (self.wants, tuple(sorted(self.columns)))

    @property
    def tokens(self) -> int:
        """Number of tokens of the text."""
        return len(self.columns["input_ids"])


def run_forward(model: PreTrainedModel, items: Sequence[ForwardItem]) -> list[Tensor]:
    """Return the result of each item in float32 on the CPU.

    Logits are (labels,) for a text, (tokens, labels) for the tokens of a text; a vector is
    (hidden,), of length 1.
    """
    batch = pad_rows(model, [item.columns for item in items])
    with running_rows(model, [item.adapter for item in items]):
        if items[0].wants == "logits":
            untyped: Any = model
            logits = untyped(**batch).logits.float().cpu()
            if logits.ndim == 2:
                return list(logits)
            return [row[: item.tokens] for row, item in zip(logits, items, strict=True)]
        return list(_vectors(model, batch))


def _vectors(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean of each row's last hidden states, scaled to length 1: (rows, hidden)."""
    untyped: Any = model
    backbone = untyped.get_encoder() if model.config.is_encoder_decoder else untyped.base_model
    hidden = backbone(**batch).last_hidden_state.float()  # (rows, tokens, hidden)
    seen = batch["attention_mask"][..., None].float()
    mean = (hidden * seen).sum(1) / seen.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1).cpu()
