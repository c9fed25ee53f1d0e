"""The few things asked of every tokenizer, with the types they really have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text with the special tokens the tokenizer adds, however long it is."""
    ids = list(_untyped(tokenizer)(text, verbose=False)["input_ids"])
    return ids[_between_single_ends(tokenizer, ids)]


def batch_columns(
    tokenizer: PreTrainedTokenizerBase, *texts: Any, **options: Any
) -> dict[str, list[list[int]]]:
    """Return the tokenizer's columns of a batch of texts or of pairs of texts, a list for each.

    A text that begins or ends with the special token that the tokenizer adds there has it once.
    """
    made = _untyped(tokenizer)(*texts, **options)
    parts = [_between_single_ends(tokenizer, ids) for ids in made["input_ids"]]
    return {name: _cut_to(rows, parts) for name, rows in made.items()}


def word_columns(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], max_length: int
) -> tuple[dict[str, list[list[int]]], list[list[int | None]]]:
    """Return the columns of texts that are given as words, and the word of each token.

    Where the first or last word is the special token that the tokenizer adds there, the word's own
    token is the one that stays.
    """
    made = _untyped(tokenizer)(
        [list(words) for words in texts],
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
    )
    parts = [_between_single_ends(tokenizer, ids) for ids in made["input_ids"]]
    words = [made.word_ids(row) for row in range(len(parts))]
    return {name: _cut_to(rows, parts) for name, rows in made.items()}, _cut_to(words, parts)


def padded(
    tokenizer: PreTrainedTokenizerBase, columns: dict[str, list[list[int]]]
) -> BatchEncoding:
    """Return columns padded to one length, as tensors."""
    return _untyped(tokenizer).pad(columns, return_tensors="pt")


def _cut_to(rows: Sequence[list[Any]], parts: Sequence[slice]) -> list[list[Any]]:
    return [row[part] for row, part in zip(rows, parts, strict=True)]


def _between_single_ends(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> slice:
    """Return the part of a text's ids that has one token for the beginning and one for the end.

    A rendered text often brings both already, and the tokenizer adds its own.
    """
    known = _untyped(tokenizer)
    start, stop = 0, len(ids)
    begins, ends = (
        (known.bos_token_id, known.cls_token_id),
        (known.eos_token_id, known.sep_token_id),
    )
    while start + 1 < stop and ids[start] in begins and ids[start + 1] == ids[start]:
        start += 1
    while stop - 2 >= start and ids[stop - 1] in ends and ids[stop - 2] == ids[stop - 1]:
        stop -= 1
    return slice(start, stop)


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
