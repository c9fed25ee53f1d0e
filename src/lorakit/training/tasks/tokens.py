"""The few things asked of every tokenizer, with the types they really have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text with the special tokens the tokenizer adds, however long it is."""
    return list(_untyped(tokenizer)(text, verbose=False)["input_ids"])


def batch_columns(tokenizer: PreTrainedTokenizerBase, *texts: Any, **options: Any) -> Any:
    """Return the tokenizer's columns of a batch of texts or of pairs of texts."""
    return _untyped(tokenizer)(*texts, **options)


def chat_columns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], **options: Any
) -> dict[str, list[int]]:
    """Return the tokenizer's columns of one rendered conversation."""
    return _untyped(tokenizer).apply_chat_template(
        list(messages), tokenize=True, return_dict=True, **options
    )


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]]) -> str:
    """Return one rendered conversation as text."""
    return _untyped(tokenizer).apply_chat_template(list(messages), tokenize=False)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the end-of-text token, if there is one."""
    return _untyped(tokenizer).eos_token_id


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token, which a tokenizer loaded for a task always has."""
    return int(_untyped(tokenizer).pad_token_id)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the special tokens and others that are no product of the vocabulary's merges."""
    return _untyped(tokenizer).get_added_vocab()


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return each id as the vocabulary writes it."""
    return _untyped(tokenizer).convert_ids_to_tokens(list(ids))


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], **options: Any) -> str:
    """Return ids as text."""
    return _untyped(tokenizer).decode(list(ids), **options)


def with_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return the ids with the end-of-text token at their end, added where it is not there.

    A model that never sees it counted in the loss never learns to stop.
    """
    end = end_id(tokenizer)
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _untyped(tokenizer: PreTrainedTokenizerBase) -> Any:
    # transformers declares the special ids and all outputs as unions of everything they might be.
    return tokenizer
