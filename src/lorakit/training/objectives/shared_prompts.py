"""Compute the prompt of two answers once: both answers follow it in one row, apart by a mask."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.data.answers import AnswerCollator
from lorakit.data.preferences import FIRST, PADDING, PROMPT, SECOND, SEGMENTS

_KINDS = ("sdpa", "eager")
"""Attention that takes any mask of (rows, 1, tokens, tokens)."""

# A prompt that is computed twice rounds alike; one that the other answer leaks into changes logits
# by a share of their size.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 3e-2


def attention_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a model's inputs for a batch of `AnswerCollator`: (batch rows, tokens) each.

    Args:
        model: The unwrapped model, which says what mask it takes.
        batch: The batch.
    """
    keys = ("input_ids", "attention_mask", "position_ids")
    inputs = {key: batch[key].flatten(0, -2) for key in keys if key in batch}
    if "position_ids" in batch:
        inputs["attention_mask"] = _mask(model, batch[SEGMENTS])
    return inputs


def _mask(model: Any, segments: Tensor) -> Tensor:
    """Return which tokens each token sees, (examples, 1, tokens, tokens).

    A token sees itself and, before it, the prompt and its own answer.
    """
    here, there = segments[:, :, None], segments[:, None, :]
    tokens = torch.arange(segments.shape[1], device=segments.device)
    is_before = tokens[:, None] >= tokens
    sees = is_before & ((there == PROMPT) | (here == there)) & (there != PADDING)
    sees = (sees | (tokens[:, None] == tokens))[:, None]
    if model.config._attn_implementation == "sdpa":
        return sees
    dtype = model.get_input_embeddings().weight.dtype
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=segments.device)
    return torch.where(sees, torch.zeros((), dtype=dtype, device=segments.device), hidden)


def takes_masks(model: Any) -> bool:
    """Whether a model's attention is of a kind that may share prompts, without running it."""
    config = model.config.get_text_config()
    has_window = getattr(config, "sliding_window", None) is not None
    kinds = set(getattr(config, "layer_types", None) or ())
    return (
        model.config._attn_implementation in _KINDS
        and "position_ids" in signature(model.forward).parameters
        and not has_window
        and kinds <= {"full_attention"}
    )


def can_share_prompts(model: Any, ids: list[int], precision: AbstractContextManager[Any]) -> bool:
    """Whether both answers get the same logits in a row with their prompt as in a row each.

    A model may take such a mask and ignore it, or carry a state along, so this tries it.

    Args:
        model: A causal language model.
        ids: A few tokens.
        precision: The context that the model trains in, such as autocast.
    """
    if not takes_masks(model) or len(ids) < 3:
        return False
    third = len(ids) // 3
    parts = [third, third, len(ids) - 2 * third]
    example = {"input_ids": ids, "labels": ids, "parts": parts}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), precision:
            apart, shared = (_logits(model, example, shares) for shares in (False, True))
    except torch.OutOfMemoryError:  # says nothing about the mask
        raise
    except (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError, IndexError):
        return False
    finally:
        model.train(was_training)
    error, size = (apart - shared).abs().max(), apart.abs().max()
    return bool(error <= _TOLERANCE.get(apart.dtype, _HALF_TOLERANCE) * size)


def _logits(model: nn.Module, example: dict[str, Any], shares: bool) -> Tensor:
    """Return the logits of both answers, one after the other, (tokens, vocabulary)."""
    any_model: Any = model
    batch = AnswerCollator(0, shares_prompts=shares)([example])
    batch = {key: value.to(any_model.device) for key, value in batch.items()}
    logits = any_model(**attention_inputs(model, batch), use_cache=False).logits
    logits = logits.view(-1, logits.shape[-1])
    segments = batch[SEGMENTS].flatten()
    return torch.cat([logits[segments == part] for part in (FIRST, SECOND)])
