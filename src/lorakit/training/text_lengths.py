"""How many tokens the longest of some texts has, counted or guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorakit.training.tasks.tokens import token_ids, with_end

_MEASURED_EXAMPLES = 200
"""Those with the most characters: the longest in tokens is among them."""
_CHARACTERS_PER_TOKEN = 3
"""Fewer than of most texts, so that a length that is guessed cuts none."""
_MESSAGE_TOKENS = 8
"""What a chat template puts around a message, at most times."""
_STEP = 8


def joined_texts(examples: Dataset, names: Sequence[str]) -> list[str]:
    """Return all texts in some columns of each example as one text."""
    columns = [examples[name][:] for name in names]
    return [" ".join(map(_as_text, values)) for values in zip(*columns, strict=True)]


def _as_text(value: Any) -> str:
    """Return all texts in a value, with room for what a template puts around each message."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        room = "x " * _MESSAGE_TOKENS
        return room + " ".join(map(_as_text, value.values()))
    return " ".join(map(_as_text, value)) if isinstance(value, (list, tuple)) else ""


def longest_text(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the tokens of the longest text."""
    longest = sorted(texts, key=len, reverse=True)[:_MEASURED_EXAMPLES]
    if tokenizer is None:
        return len(longest[0]) // _CHARACTERS_PER_TOKEN + 2
    return max(len(with_end(tokenizer, token_ids(tokenizer, text))) for text in longest)


def rounded_up(tokens: int) -> int:
    """Return a length to cut at that cuts nothing of so many tokens.

    >>> rounded_up(25), rounded_up(32)
    (32, 32)
    """
    return max(-(-tokens // _STEP) * _STEP, _STEP)
