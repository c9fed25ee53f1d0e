"""Count or estimate the number of tokens of the longest text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorakit.data.chat import TEMPLATE_ERRORS
from lorakit.data.conversations import drop_filled_nulls, parse_conversation
from lorakit.data.tokenizers import chat_columns, token_ids, with_end

_MEASURED_EXAMPLES = 200
"""Number of examples with the most characters that are tokenized to find the longest."""
_BYTES_PER_TOKEN = 3
"""A low estimate, so that an estimated length truncates nothing; a Chinese character, which may be
one token, has three bytes."""
_MESSAGE_TOKENS = 8
"""Number of tokens that a typical chat template adds to a message."""
_STEP = 8


def join_texts(examples: Dataset, names: Sequence[str]) -> list[str]:
    """Return all texts in the columns of each example, joined."""
    columns = [examples[name][:] for name in names]
    return [" ".join(map(_as_text, values)) for values in zip(*columns, strict=True)]


def _as_text(value: Any) -> str:
    """Return all texts in a value, with filler for what a template adds to each message."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        filler = "x " * _MESSAGE_TOKENS
        return filler + " ".join(map(_as_text, value.values()))
    return " ".join(map(_as_text, value)) if isinstance(value, (list, tuple)) else ""


def longest_text(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the number of tokens of the longest text, estimated without a tokenizer."""
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
    """Return the number of tokens of the longest conversation, rendered with the chat template.

    Args:
        examples: Examples that are known to be conversations.
        columns: Column of the messages, or the columns of prompt and completion.
        texts: All texts of each example.
        tokenizer: A tokenizer with a chat template.
    """
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]), reverse=True)
    longest = [
        parse_conversation(drop_filled_nulls(examples[at], examples.features), *columns)
        for at in order[:_MEASURED_EXAMPLES]
    ]
    try:
        return max(
            len(chat_columns(tokenizer, talk.messages, **talk.options)["input_ids"])
            for talk in longest
        )
    except TEMPLATE_ERRORS:  # training reports them, with the examples
        return longest_text(texts, tokenizer)


def round_up_length(tokens: int) -> int:
    """Return a truncation length that keeps this number of tokens.

    >>> round_up_length(25), round_up_length(32)
    (32, 32)
    """
    return max(-(-tokens // _STEP) * _STEP, _STEP)
