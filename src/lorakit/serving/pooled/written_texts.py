"""Answers of sequence-to-sequence models, in batches of several adapters."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria

from lorakit.serving.pooled.forward_items import Columns, pad_rows, running_rows
from lorakit.serving.requests import FinishReason, Sampling


@dataclass(frozen=True)
class WrittenItem:
    """One text for a sequence-to-sequence model.

    Attributes:
        columns: The tokenizer's columns of the text.
        adapter: Name under which the model carries the adapter; None for the base alone.
        sampling: How tokens are chosen; penalties, biases and log-probabilities are not used.
        num_beams: Beams to search the likeliest answer with; None takes the base's.
        is_cancelled: Set when nobody waits for the answer.
    """

    columns: Columns
    adapter: str | None
    sampling: Sampling
    num_beams: int | None = None
    is_cancelled: Event = field(default_factory=Event)

    @property
    def batch_key(self) -> Hashable:
        """Likeliest tokens are found in one batch; an answer that is sampled is alone."""
        is_drawn = self.sampling.is_drawn
        if is_drawn:
            return ("sampled", id(self))
        return ("likeliest", self.num_beams, self.sampling.stop_token_ids)

    @property
    def tokens(self) -> int:
        """Number of tokens of the text, and of the longest answer."""
        return len(self.columns["input_ids"]) + self.sampling.max_tokens


@dataclass(frozen=True)
class Written:
    """The tokens of an answer, without the token that ended it."""

    token_ids: tuple[int, ...]
    reason: FinishReason


def run_written(model: PreTrainedModel, items: Sequence[WrittenItem]) -> list[Written]:
    """Return the answer of each item.

    The likeliest one is searched with beams as training and `generate` do.
    """
    batch = pad_rows(model, [item.columns for item in items])
    sampling = items[0].sampling
    options: dict[str, Any] = {"do_sample": sampling.is_drawn}
    if items[0].num_beams is not None:
        options["num_beams"] = items[0].num_beams
    if options["do_sample"]:
        options |= {
            "num_beams": 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p or None,
        }
    untyped: Any = model
    with running_rows(model, [item.adapter for item in items]), torch.random.fork_rng():
        torch.manual_seed(sampling.seed)
        made = untyped.generate(
            **batch,
            max_new_tokens=max(item.sampling.max_tokens for item in items),
            eos_token_id=sorted(sampling.stop_token_ids) or None,
            stopping_criteria=[_Stops(items)],
            **options,
        )
    return [_cut(row, item.sampling) for row, item in zip(made.tolist(), items, strict=True)]


def _cut(row: Sequence[int], sampling: Sampling) -> Written:
    """Return a row without the decoder's first token and what follows its end."""
    ids = row[1 : 1 + sampling.max_tokens]
    for position, token in enumerate(ids):
        if token in sampling.stop_token_ids:
            return Written(tuple(ids[:position]), "stop")
    return Written(tuple(ids), "length")


class _Stops(StoppingCriteria):
    """Ends a row that nobody waits for, or that has all its tokens."""

    def __init__(self, items: Sequence[WrittenItem]):
        self._items = items

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        written = input_ids.shape[1] - 1
        ended = [
            item.is_cancelled.is_set() or written >= item.sampling.max_tokens
            for item in self._items
        ]
        beams = len(input_ids) // len(ended)
        return torch.tensor(ended, device=input_ids.device).repeat_interleave(beams)
