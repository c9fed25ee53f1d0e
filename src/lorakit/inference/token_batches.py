"""Run a model over tokenized texts in batches of like length, of a size that suits the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

from torch import Tensor

from lorakit.data.tokenizers import pad_batch, pad_length
from lorakit.errors import DataError
from lorakit.inference.loaded import LoadedModel
from lorakit.models.padded_lengths import length_multiple

POOL_TEXTS = 1024
"""Number of texts that are tokenized at once, and sorted by their length."""
_CPU_BATCH_TOKENS = 1024
"""Most tokens of a batch on a CPU, padding included. The results of a layer for more tokens leave
the caches of a processor, and large ones are memory that is taken from the system each time: with
the quickstart's model, 8192 tokens at once took 1.8 times as long as 1024 at a time."""


def require_tokens(columns: dict[str, list[list[int]]], texts: Sequence[Any]) -> None:
    """Refuse texts without a token, whose outputs would be those of the padding.

    Raises:
        DataError: There is one.
    """
    for ids, text in zip(columns["input_ids"], texts, strict=True):
        if not ids:
            raise DataError(
                f"A text has no token: got {str(text)[:60]!r}, expected at least one. Leave it out."
            )


def classifying_token(model: Any) -> int | None:
    """Return the end token at which T5 and BART classify a text; None for other models.

    They want as many of it in each row of a batch.
    """
    config = model.config
    return getattr(config, "eos_token_id", None) if config.is_encoder_decoder else None


def logits_in_batches(
    loaded: LoadedModel, columns: dict[str, list[list[int]]], batch_rows: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the numbers of the texts of a batch, and their logits in float32.

    Args:
        loaded: An adapter on its base.
        columns: The tokenizer's columns of texts.
        batch_rows: Largest number of texts in a batch.
    """
    model: Any = loaded.model
    takes_cache = "use_cache" in signature(model.forward).parameters
    options = {"use_cache": False} if takes_cache else {}
    on_cpu = model.device.type == "cpu"
    multiple = length_multiple(model)
    lengths = [pad_length(len(ids), multiple) for ids in columns["input_ids"]]
    most = _CPU_BATCH_TOKENS if on_cpu else None
    end: Any = classifying_token(model)
    ends = [ids.count(end) for ids in columns["input_ids"]]
    for count in sorted(set(ends)):
        alike = [number for number, found in enumerate(ends) if found == count]
        for batch in like_length_batches([lengths[number] for number in alike], batch_rows, most):
            numbers = [alike[at] for at in batch]
            rows = {name: [values[one] for one in numbers] for name, values in columns.items()}
            encoded = pad_batch(loaded.tokenizer, rows, multiple).to(model.device)
            yield numbers, model(**encoded, **options).logits.float()


def like_length_batches(
    lengths: Sequence[int], batch_rows: int, batch_tokens: int | None
) -> Iterator[list[int]]:
    """Yield the numbers of texts in batches of like length, the longest first.

    Args:
        lengths: Number of tokens of each text.
        batch_rows: Largest number of texts in a batch.
        batch_tokens: Largest number of tokens in a batch, padding included, unless one text has
            more; None is any number.

    >>> list(like_length_batches([2, 9, 3, 1], 2, None))
    [[1, 2], [0, 3]]
    >>> list(like_length_batches([2, 9, 3, 1], 9, 9))
    [[1], [2, 0, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    start = 0
    while start < len(order):
        longest = max(lengths[order[start]], 1)
        fitting = batch_rows if batch_tokens is None else max(batch_tokens // longest, 1)
        size = min(batch_rows, fitting)
        yield order[start : start + size]
        start += size
