"""Tokenize examples, and turn tokens back into readable text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, TypeVar

import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from lorakit.data import Place, describe_examples, is_missing
from lorakit.data.chunks import Batch, digest_of, is_large, over_chunks
from lorakit.data.reading.table import in_memory_dataset
from lorakit.data.table_cache import Kept, Spool, TableCache, preparing_code
from lorakit.data.tokenizers import batch_columns, decode, token_pieces
from lorakit.errors import DataError

Encoded = TypeVar("Encoded")

IDS = List(Value("int32"))
"""The feature of an example's token ids or labels."""

_PROBE_TOKENS = 16
_MOST_PARTS = 8
"""Most tokens to read as parts of the same characters."""


def map_examples(
    dataset: Dataset,
    function: Callable[[Batch, Sequence[int]], tuple[Batch, tuple[int, ...]]],
    features: Mapping[str, Any],
    identity: Callable[[], str],
    cache: TableCache,
    check: Callable[[], None] | None = None,
) -> tuple[Dataset, tuple[int, ...]]:
    """Map chunks of examples to new columns; the result of large data is mapped from disk.

    Args:
        dataset: The examples.
        function: Takes the columns of a chunk and the numbers of its examples; returns the new
            columns, and some counts. See `over_chunks`.
        features: The new columns and their types.
        identity: Says everything that the function's result depends on besides the examples; it
            is asked for large data alone.
        cache: Where the result of large data is kept, by that and the examples' content.
        check: Refuses examples that the function cannot take. It depends on what the result
            depends on, and is not called where the result was kept.

    Returns: The new columns, and the sums of the counts.
    """
    schema = Features(features).arrow_schema.remove_metadata()
    large = is_large(dataset)
    key = digest_of(dataset, preparing_code(), identity()) if large else ""
    kept = cache.get(key) if large else None
    if kept is None:
        if check is not None:
            check()
        spool, tables, counts = Spool(), [schema.empty_table()], list[tuple[int, ...]]()

        def encode(batch: Batch, numbers: Sequence[int]) -> tuple[pa.Table, tuple[int, ...]]:
            columns, counts = function(batch, numbers)
            return pa.table({name: columns[name] for name in schema.names}, schema), counts

        for table, some in over_chunks(dataset, encode, "Tokenizing"):
            tables.append(spool.keep(table) if large else table)
            counts.append(some)
        sums = [sum(some) for some in zip(*counts, strict=True)]
        made = {"examples": pa.concat_tables(tables)}
        kept = cache.put(key, made, {"counts": sums}) if large else Kept(made, {"counts": sums})
    return in_memory_dataset(kept.tables["examples"], features), tuple(kept.facts["counts"])


def naming_examples(
    encode: Callable[[Batch, Sequence[int]], list[Encoded]], where: Place | str
) -> Callable[[Batch, Sequence[int]], list[Encoded]]:
    """Return a function that encodes a chunk of examples, and names the one that is refused.

    Args:
        encode: Takes the columns of a chunk and the numbers of its examples.
        where: Name of all examples.
    """

    def encode_chunk(batch: Batch, numbers: Sequence[int]) -> list[Encoded]:
        try:
            return encode(batch, numbers)
        except DataError:
            for at, number in enumerate(numbers):
                one = {name: values[at : at + 1] for name, values in batch.items()}
                try:
                    encode(one, [number])
                except DataError as error:
                    which = describe_examples([number], where)
                    raise DataError(f"In {which} of {where}: {error}") from error
            raise

    return encode_chunk


def require_texts(dataset: Dataset, columns: Mapping[str, str], where: Place | str) -> None:
    """Check that each example has a text in each of the columns.

    Args:
        dataset: The examples, which have the columns.
        columns: Column by the recipe key that names it.
        where: Name of the examples, for errors.

    Raises:
        DataError: Lists, for every column, the examples with a missing value or another type.
    """
    texts = dataset.select_columns(list(dict.fromkeys(columns.values())))
    empty: dict[str, list[int]] = {column: [] for column in columns.values()}
    other: dict[str, list[tuple[int, str]]] = {column: [] for column in columns.values()}

    def find(batch: Batch, numbers: Sequence[int]) -> list[tuple[str, int, str | None]]:
        return [
            (column, number, None if is_missing(value) else type(value).__name__)
            for column, values in batch.items()
            for number, value in zip(numbers, values, strict=True)
            if not isinstance(value, str) or not value.strip()
        ]

    for found in over_chunks(texts, find, "Checking"):
        for column, number, kind in found:
            if kind is None:
                empty[column].append(number)
            else:
                other[column].append((number, kind))
    problems = []
    for key, column in columns.items():
        if empty[column]:
            where_empty = describe_examples(empty[column], where)
            problems.append(f"'{column}' ({key}) is empty in {where_empty}")
        if other[column]:
            (_, kind), numbers = other[column][0], [number for number, _ in other[column]]
            problems.append(
                f"'{column}' ({key}) holds {kind} in {describe_examples(numbers, where)}"
            )
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
