"""Turn rows into tokens, and tensors back into rows a person can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any
from uuid import uuid4

import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from lorakit.data import Place, is_missing, listed, without_bars
from lorakit.data.tokenizers import batch_columns, decoded, pieces
from lorakit.errors import DataError

IDS = List(Value("int32"))
"""The feature of a row of token ids or labels."""

NOT_COUNTED = -100
"""The label of a token that does not count in the loss, as torch's cross entropy has it."""

_PROBE_TOKENS = 16


def map_examples(
    dataset: Dataset,
    function: Callable[[dict[str, list[Any]]], dict[str, list[Any]]],
    features: Mapping[str, Any],
) -> Dataset:
    """Turn batches of rows into new ones, in memory and never from a cache.

    A cached result could be that of another version of this code, and its file would be written
    beside the user's data.

    Args:
        dataset: The rows.
        function: Takes the columns of a batch and returns the new columns.
        features: The new columns and their types; all old ones are dropped.
    """
    with without_bars():
        return dataset.map(
            function,
            batched=True,
            remove_columns=dataset.column_names,
            features=Features(features),
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=uuid4().hex,
        )


def require_texts(dataset: Dataset, columns: Mapping[str, str], where: Place | str) -> None:
    """Check that each row has a text in each of these columns.

    Args:
        dataset: The rows; the columns must be there.
        columns: Column by the recipe key that names it.
        where: What to call the rows in the error.

    Raises:
        DataError: Lists, for every column, the rows that hold nothing or no text.
    """
    problems = []
    for key, column in columns.items():
        values: list[Any] = dataset[column][:]
        empty = [row for row, value in enumerate(values) if is_missing(value)]
        if empty:
            problems.append(f"'{column}' ({key}) is empty in {listed(empty, where)}")
        other = [
            row
            for row, value in enumerate(values)
            if not isinstance(value, str) and not is_missing(value)
        ]
        if other:
            kind = type(values[other[0]]).__name__
            problems.append(f"'{column}' ({key}) holds {kind} in {listed(other, where)}")
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
    """Tokenize texts, cut to `max_length`.

    Returns: The tokenizer's columns, and how many rows were cut.
    """
    given = (list(texts),) if pairs is None else (list(texts), list(pairs))
    columns = batch_columns(tokenizer, *given, truncation=True, max_length=max_length)
    made = columns["input_ids"]
    # A special token that was there twice has been removed after the cut, at either end.
    may_be_cut = [len(ids) >= max_length - 2 for ids in made]
    again = [list(compress(part, may_be_cut)) for part in given]
    cut = 0
    if again[0]:
        whole = batch_columns(tokenizer, *again, verbose=False)["input_ids"]
        kept = compress(made, may_be_cut)
        cut = sum(len(ids) > len(short) for ids, short in zip(whole, kept, strict=True))
    return columns, cut


def cut_note(cut: int, rows: int, max_length: int, kind: str) -> list[str]:
    """Say how many rows were cut, if any."""
    if not cut:
        return []
    return [f"{cut} of {rows} {kind} examples were cut to {max_length} tokens (data.max_length)."]


def readable(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor | Sequence[int]) -> list[str]:
    """Return each token as text; a token that is only a part of a character as its raw piece."""
    numbers = [int(i) for i in ids]
    texts = [decoded(tokenizer, [i], clean_up_tokenization_spaces=False) for i in numbers]
    return [
        piece if not text or "\N{REPLACEMENT CHARACTER}" in text else text
        for piece, text in zip(pieces(tokenizer, numbers), texts, strict=True)
    ]


def first_examples(dataset: Dataset, n: int) -> list[dict[str, Any]]:
    """Return the first n rows as dictionaries."""
    return [dataset[row] for row in range(min(n, len(dataset)))]


def probe_tokens(dataset: Any, column: str) -> torch.Tensor:
    """Return the first few tokens of the first row, (1, tokens), to try a model with."""
    return torch.tensor([dataset[0][column][:_PROBE_TOKENS]])
