"""Tokenize examples, and turn tokens back into readable text."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import compress
from typing import Any
from uuid import uuid4

import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from lorakit.data import Place, describe_examples, hiding_progress_bars, is_missing
from lorakit.data.tokenizers import batch_columns, decode, token_pieces
from lorakit.errors import DataError

IDS = List(Value("int32"))
"""The feature of an example's token ids or labels."""

_EXAMPLES_EACH = 20_000
"""Fewest examples for a process, whose start takes about as long as tokenizing some thousand."""
_MOST_PROCESSES = 16
_PROBE_TOKENS = 16
_MOST_PARTS = 8
"""Most tokens to read as parts of the same characters."""


def map_examples(
    dataset: Dataset,
    function: Callable[[dict[str, list[Any]]], dict[str, list[Any]]],
    features: Mapping[str, Any],
) -> Dataset:
    """Map batches of examples to new columns, in memory and without a cache.

    A cached result may come from another version of this code, and its file would be written
    beside the user's data.

    Args:
        dataset: The examples.
        function: Takes the columns of a batch and returns the new columns.
        features: The new columns and their types; all old columns are dropped.
    """
    with hiding_progress_bars():
        return dataset.map(
            function,
            batched=True,
            remove_columns=dataset.column_names,
            features=Features(features),
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=uuid4().hex,
        )


def map_in_processes(
    dataset: Dataset,
    function: Callable[[dict[str, list[Any]], Sequence[int]], dict[str, list[Any]]],
    features: Mapping[str, Any],
) -> Dataset:
    """Map batches of examples to new columns, those of large data on all processors.

    A progress bar is shown while processes work, where the terminal shows any.

    Args:
        dataset: The examples.
        function: Takes the columns of a batch and the numbers of its examples, and returns the new
            columns; it keeps nothing between calls, as these may be in other processes.
        features: The new columns and their types; all old columns are dropped.
    """
    wanted = min(len(os.sched_getaffinity(0)), _MOST_PROCESSES, len(dataset) // _EXAMPLES_EACH)
    processes = wanted if wanted > 1 else None
    with nullcontext() if processes else hiding_progress_bars():
        return dataset.map(
            function,
            batched=True,
            with_indices=True,
            num_proc=processes,
            desc="Tokenizing",
            remove_columns=dataset.column_names,
            features=Features(features),
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=uuid4().hex,
        )


def require_texts(dataset: Dataset, columns: Mapping[str, str], where: Place | str) -> None:
    """Check that each example has a text in each of the columns.

    Args:
        dataset: The examples, which have the columns.
        columns: Column by the recipe key that names it.
        where: Name of the examples, for errors.

    Raises:
        DataError: Lists, for every column, the examples with a missing value or another type.
    """
    problems = []
    for key, column in columns.items():
        values: list[Any] = dataset[column][:]
        empty = [number for number, value in enumerate(values) if is_missing(value)]
        if empty:
            problems.append(f"'{column}' ({key}) is empty in {describe_examples(empty, where)}")
        other = [
            number
            for number, value in enumerate(values)
            if not isinstance(value, str) and not is_missing(value)
        ]
        if other:
            kind = type(values[other[0]]).__name__
            problems.append(f"'{column}' ({key}) holds {kind} in {describe_examples(other, where)}")
    if problems:
        raise DataError(
            f"Texts are missing in {where}: {'; '.join(problems)}; expected a text in each "
            "example. Repair or remove these examples, or name another column."
        )


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
) -> tuple[dict[str, list[Any]], int]:
    """Tokenize texts, truncated to `max_length`.

    Returns: The tokenizer's columns, and the number of examples that were truncated.
    """
    given = (list(texts),) if pairs is None else (list(texts), list(pairs))
    columns = batch_columns(tokenizer, *given, truncation=True, max_length=max_length)
    made = columns["input_ids"]
    # A doubled special token has been removed after the truncation, at either end.
    may_be_cut = [len(ids) >= max_length - 2 for ids in made]
    candidates = [list(compress(column, may_be_cut)) for column in given]
    cut = 0
    if candidates[0]:
        whole = batch_columns(tokenizer, *candidates, verbose=False)["input_ids"]
        kept = compress(made, may_be_cut)
        cut = sum(len(ids) > len(short) for ids, short in zip(whole, kept, strict=True))
    return columns, cut


def cut_note(cut: int, total: int, max_length: int, kind: str) -> list[str]:
    """Return a note on how many examples were truncated, if any."""
    if not cut:
        return []
    return [f"{cut} of {total} {kind} examples were cut to {max_length} tokens (data.max_length)."]


def readable(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor | Sequence[int]) -> list[str]:
    """Return each token as text.

    Of the tokens that are parts of a character, the first is the character and the others are
    empty. A part whose character is incomplete, and a token without text, are their raw pieces.
    """
    numbers = [int(i) for i in ids]
    shown: list[str] = []
    while (start := len(shown)) < len(numbers):
        longest = numbers[start : start + _MOST_PARTS]
        for count in range(1, len(longest) + 1):
            text = decode(tokenizer, longest[:count], clean_up_tokenization_spaces=False)
            if "\N{REPLACEMENT CHARACTER}" not in text:
                break
        else:
            text, count = "", 1
        shown += [text or token_pieces(tokenizer, longest[:1])[0], *[""] * (count - 1)]
    return shown


def first_examples(dataset: Dataset, n: int) -> list[dict[str, Any]]:
    """Return the first n examples as dictionaries."""
    return [dataset[number] for number in range(min(n, len(dataset)))]


def probe_tokens(dataset: Any, column: str) -> torch.Tensor:
    """Return the first few tokens of the first example, (1, tokens), to probe a model with."""
    return torch.tensor([dataset[0][column][:_PROBE_TOKENS]])
