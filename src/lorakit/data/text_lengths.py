"""How many tokens the longest of some texts has, counted or guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorakit.data.chat import TEMPLATE_ERRORS
from lorakit.data.conversations import conversation_of, without_fillings
from lorakit.data.tokenizers import chat_columns, token_ids, with_end

_MEASURED_EXAMPLES = 200
"""Those with the most characters: the longest in tokens is among them."""
_BYTES_PER_TOKEN = 3
"""Fewer than most tokens have, so that a length that is guessed cuts none; a Chinese character,
which may be a token, has as many."""
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
        return max(len(text.encode()) for text in longest) // _BYTES_PER_TOKEN + 2
    return max(len(with_end(tokenizer, token_ids(tokenizer, text))) for text in longest)


def longest_conversation(
    examples: Dataset,
    columns: Sequence[str],
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    """Return the tokens of the longest conversation, as the chat template renders it.

    Args:
        examples: They have been checked to be conversations.
        columns: Of the messages, or of the prompt's and the completion's.
        texts: All texts of each example.
        tokenizer: With a chat template.
    """
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]), reverse=True)
    longest = [
        conversation_of(without_fillings(examples[at], examples), *columns)
        for at in order[:_MEASURED_EXAMPLES]
    ]
    try:
        return max(
            len(chat_columns(tokenizer, talk.messages, **talk.options)["input_ids"])
            for talk in longest
        )
    except TEMPLATE_ERRORS:  # which training tells of, with its examples
        return longest_text(texts, tokenizer)


def rounded_up(tokens: int) -> int:
    """Return a length to cut at that cuts nothing of so many tokens.

    >>> rounded_up(25), rounded_up(32)
    (32, 32)
    """
    return max(-(-tokens // _STEP) * _STEP, _STEP)
