"""The attention of stacked batches of short sequences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lorakit.ops import short_attention

_OTHER_KINDS = ("position_bias", "cache", "softcap", "output_attentions")
"""Arguments by which a model asks for another kind of attention."""


@contextmanager
def with_short_attention() -> Iterator[None]:
    """Let models with torch's attention use `short_attention` where that is the faster one.

    For one forward pass, during which no other thread runs a model.
    """
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward:
        yield  # somebody has registered another one
        return
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]  # what was registered is there again


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' function of the same arguments does."""
    is_plain = not dropout and not any(
        isinstance(kwargs.get(name), Tensor) or kwargs.get(name) for name in _OTHER_KINDS
    )
    if is_plain and short_attention.takes(query, key, value, attention_mask):
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        output = short_attention.short_attention(
            query, key, value, attention_mask, causal and attention_mask is None, scaling
        )
        return output.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
    )
