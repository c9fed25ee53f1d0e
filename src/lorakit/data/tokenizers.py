"""Call tokenizers with precise types, and without doubled special tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text, untruncated, with the special tokens the tokenizer adds."""
    return many_token_ids(tokenizer, [text])[0]


def many_token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts, untruncated, with the special tokens the tokenizer adds.

    A fast tokenizer is asked for nothing else: masks, types and places of tokens in the text take
    as long as the ids.
    """
    known = _as_any(tokenizer)
    if _is_plain(known):
        known("")  # lets the backend neither truncate nor pad
        made = known.backend_tokenizer.encode_batch_fast(list(texts))
        ids = [one.ids for one in made]
    else:
        ids = known(list(texts), verbose=False)["input_ids"]
    return _cut_to(ids, _spans_without_doubled_ends(tokenizer, ids))


def ids_to_continue(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text that a model continues, without an end token that it does not have.

    A tokenizer that appends the end token would make the model continue after the end.
    """
    ids, known = token_ids(tokenizer, text), _as_any(tokenizer)
    if len(ids) > 1 and ids[-1] == known.eos_token_id:
        written = known(text, add_special_tokens=False, verbose=False)["input_ids"]
        if written[-1:] != ids[-1:]:
            return ids[:-1]
    return ids


def _is_plain(tokenizer: Any) -> bool:
    """Return whether a tokenizer gives the ids of its backend, without code of its class."""
    kind: Any = type(tokenizer)
    return (
        issubclass(kind, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerFast.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    )


def batch_columns(
    tokenizer: PreTrainedTokenizerBase, *texts: Any, **options: Any
) -> dict[str, list[list[int]]]:
    """Return the tokenizer's columns of a batch of texts or pairs of texts.

    A special token that a text already has where the tokenizer adds it appears once.
    """
    made = _as_any(tokenizer)(*texts, **options)
    spans = _spans_without_doubled_ends(tokenizer, made["input_ids"])
    return {name: _cut_to(values, spans) for name, values in made.items()}


def word_columns(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], max_length: int
) -> tuple[dict[str, list[list[int]]], list[list[int | None]]]:
    """Return the columns of texts that are given as words, and the word index of each token.

    If the first or last word is the special token that the tokenizer adds there, the token of the
    word is kept.
    """
    made = _as_any(tokenizer)(
        [list(words) for words in texts],
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
    )
    spans = _spans_without_doubled_ends(tokenizer, made["input_ids"])
    words = [made.word_ids(index) for index in range(len(spans))]
    return {name: _cut_to(values, spans) for name, values in made.items()}, _cut_to(words, spans)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of all that the ids of texts and conversations depend on.

    A tokenizer whose rules cannot be read, as they are Python code, has another one at each call.
    """
    known = _as_any(tokenizer)
    backend = getattr(known, "backend_tokenizer", None)
    rules = uuid4().hex if backend is None else backend.to_str()
    facts = (
        type(known).__qualname__,
        sorted((name, str(token)) for name, token in known.special_tokens_map.items()),
        known.chat_template,
        known.truncation_side,
        known.model_input_names,
        rules,
        *map(version, ("jinja2", "tokenizers", "transformers", "trl")),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def pad_length(length: int, multiple: int | None) -> int:
    """Return a length padded to a multiple of a number of tokens; None leaves it.

    >>> pad_length(33, 32), pad_length(33, None)
    (64, 33)
    """
    return length if multiple is None else -(-length // multiple) * multiple


def pad_batch(
    tokenizer: PreTrainedTokenizerBase,
    columns: dict[str, list[list[int]]],
    multiple: int | None = None,
) -> BatchEncoding:
    """Return columns padded to one length, as tensors.

    The tokenizer's method does the same, but walks all numbers in Python.

    Args:
        tokenizer: The tokenizer.
        columns: Numbers of each text, by column.
        multiple: Number of tokens that the length is a multiple of; None for any length.
    """
    known = _as_any(tokenizer)
    fillers = {
        "input_ids": known.pad_token_id,
        "token_type_ids": known.pad_token_type_id,
        "special_tokens_mask": 1,
    }
    on_left = known.padding_side == "left"
    rows = columns["input_ids"]
    width = pad_length(max(map(len, rows)), multiple)
    padded = {}
    for name, values in columns.items():
        table = np.full((len(rows), width), fillers.get(name, 0), np.int64)
        for row, value in zip(table, values, strict=True):
            row[width - len(value) if on_left else 0 :][: len(value)] = value
        padded[name] = torch.from_numpy(table)
    return BatchEncoding(padded)


def _cut_to(values: Sequence[list[Any]], spans: Sequence[slice | None]) -> list[list[Any]]:
    return [
        value if span is None else value[span] for value, span in zip(values, spans, strict=True)
    ]


def _spans_without_doubled_ends(
    tokenizer: PreTrainedTokenizerBase, many: Sequence[Sequence[int]]
) -> list[slice | None]:
    """Return the slice of each text's ids that has one beginning and one end token; None is all.

    A rendered text often has both already, and the tokenizer adds them again.
    """
    known = _as_any(tokenizer)
    begins = {known.bos_token_id, known.cls_token_id}
    ends = {known.eos_token_id, known.sep_token_id}
    spans: list[slice | None] = []
    for ids in many:
        start, stop = 0, len(ids)
        if stop > 1 and (ids[0] == ids[1] or ids[-1] == ids[-2]):
            while start + 1 < stop and ids[start] in begins and ids[start + 1] == ids[start]:
                start += 1
            while stop - 2 >= start and ids[stop - 1] in ends and ids[stop - 2] == ids[stop - 1]:
                stop -= 1
        spans.append(None if stop - start == len(ids) else slice(start, stop))
    return spans


def chat_columns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], **options: Any
) -> dict[str, list[int]]:
    """Return the tokenizer's columns of one rendered conversation."""
    return _as_any(tokenizer).apply_chat_template(
        list(messages), tokenize=True, return_dict=True, **options
    )


def many_chat_columns(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[dict[str, Any]]],
    **options: Any,
) -> dict[str, list[list[int]]]:
    """Return the ids of conversations that are rendered with the same options, and their marks.

    They are those of `chat_columns` one by one, in less time: texts are tokenized at once.
    """
    return _as_any(tokenizer).apply_chat_template(
        [list(messages) for messages in conversations],
        tokenize=True,
        return_dict=True,
        tokenizer_kwargs={"return_attention_mask": False, "return_token_type_ids": False},
        **options,
    )


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]]) -> str:
    """Return one rendered conversation as text."""
    return _as_any(tokenizer).apply_chat_template(list(messages), tokenize=False)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the end-of-text token, if there is one."""
    return _as_any(tokenizer).eos_token_id


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token, which every tokenizer loaded for a task has."""
    return int(_as_any(tokenizer).pad_token_id)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the special and other added tokens."""
    return _as_any(tokenizer).get_added_vocab()


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the vocabulary entry of each id."""
    return _as_any(tokenizer).convert_ids_to_tokens(list(ids))


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], **options: Any) -> str:
    """Return the text of ids."""
    return _as_any(tokenizer).decode(list(ids), **options)


def with_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return the ids with the end-of-text token appended, unless they end with it.

    A model that is never trained on it never learns to stop.
    """
    return with_ends(tokenizer, [ids])[0]


def with_ends(tokenizer: PreTrainedTokenizerBase, many: Sequence[list[int]]) -> list[list[int]]:
    """Return the ids of texts, each with the end-of-text token; see `with_end`."""
    end = end_id(tokenizer)
    return [ids if end is None or (ids and ids[-1] == end) else [*ids, end] for ids in many]


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, has_end: bool) -> list[int]:
    """Return the ids of a prompt with its answer, which a reward model scores, as in training.

    Args:
        tokenizer: The adapter's tokenizer.
        text: The prompt and its answer.
        has_end: Whether the text has the end of an answer, as a rendered conversation has it.
    """
    ids = token_ids(tokenizer, text)
    return ids if has_end or not ids else with_end(tokenizer, ids)


def _as_any(tokenizer: PreTrainedTokenizerBase) -> Any:
    # transformers declares special ids and outputs as unions of all types they may have.
    return tokenizer
