"""The rows a step is planned for: the longest there are, or rows as long as may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from lorakit.config import TaskType
from lorakit.errors import MissingFileError
from lorakit.training.data import Splits, is_local, load_splits
from lorakit.training.tasks import Encoded, Task
from lorakit.training.tasks.base import seed_of
from lorakit.training.tasks.pretrained import resolve_max_length

if TYPE_CHECKING:
    from lorakit.training.recipe import Recipe

_LONGEST = 256
"""Rows with the most characters that are made into tokens; among them are those with the most."""
_SPREAD = 256
"""Rows spread evenly over the data, whose mean length is taken for that of all."""
_TOKEN = 1


@dataclass(frozen=True)
class PlannedRows:
    """What a batch is made of, and how much there is to train on."""

    longest: list[dict[str, Any]]
    """Encoded rows, the longest first."""
    encoded: Encoded
    """The rows looked at, as a trainer takes them."""
    train_rows: int | None
    """Of the whole run, packed ones where rows are packed; None where the data is not here."""
    mean_tokens: float
    """Of a row."""
    note: str
    """Where the length comes from, one sentence."""


def find_splits(recipe: Recipe, *, download: bool) -> Splits | None:
    """Read a recipe's rows where they are here; None for a hub dataset that is not looked at.

    Raises:
        MissingFileError, DataError: A local file is not there or cannot be read.
    """
    names = [name for name in (recipe.data.train, recipe.data.validation) if name is not None]
    if not download and not all(is_local(name) for name in names):
        return None
    return load_splits(recipe.data, seed_of(recipe))


def find_tokenizer(
    recipe: Recipe, task: Task, *, download: bool
) -> tuple[PreTrainedTokenizerBase, bool]:
    """Load the base's tokenizer where it is here, else make one of a single word.

    Returns: The tokenizer, and whether it is the base's own.
    """
    if download or Path(recipe.model).is_dir() or _is_cached(recipe):
        try:
            return task.load_tokenizer(recipe), True
        except MissingFileError:
            if download:
                raise
    words = WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<end>")
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="<end>"
    )
    return made, False


def _is_cached(recipe: Recipe) -> bool:
    found = cached_file(
        recipe.model,
        "tokenizer_config.json",
        revision=recipe.revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return found is not None


def rows_from_data(
    splits: Splits,
    recipe: Recipe,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    labels: tuple[str, ...] | None,
) -> PlannedRows:
    """Make the longest rows of the data into tokens, and some of the others.

    Raises:
        DataError, ConfigError: As training would raise for these rows.
    """
    train = splits.train
    longest, spread = _chosen(train)
    look = replace(splits, train=train.select(sorted({*longest, *spread})), validation=None)
    encoded = task.encode(look, recipe, tokenizer, model, labels)
    others = encoded
    if len(longest) < len(train):
        some = replace(look, train=train.select(spread))
        others = task.encode(some, recipe, tokenizer, model, labels)
    lengths = [row_tokens(row) for row in _rows(others.train)]
    rows = round(len(train) * len(lengths) / len(spread))
    note = f"The longest of {len(train):,} rows, at most {encoded.settings['max_length']} tokens."
    return PlannedRows(
        sorted(_rows(encoded.train), key=row_tokens, reverse=True),
        encoded,
        max(rows, 1),
        sum(lengths) / max(len(lengths), 1),
        note,
    )


def rows_without_data(
    recipe: Recipe,
    task_type: TaskType,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    train_rows: int | None,
) -> PlannedRows:
    """Make rows as long as `data.max_length` allows, of a token repeated.

    Raises:
        ConfigError: `data.max_length` is above the model's limit.
    """
    length = resolve_max_length(recipe.data.max_length, model, tokenizer)
    row = _ROWS[task_type](length, recipe)
    batch = int(recipe.training.get("per_device_train_batch_size", 8))
    made = Dataset.from_list([row] * batch)
    why = "as the rows are not here" if train_rows is None else "as the tokenizer is not here"
    note = f"Rows of {length:,} tokens, {why} (data.max_length)."
    return PlannedRows(_rows(made), Encoded(made, None), train_rows, float(length), note)


def _text_row(length: int, recipe: Recipe) -> dict[str, Any]:
    row: dict[str, Any] = {"input_ids": [_TOKEN] * length, "labels": [_TOKEN] * length}
    return row | ({"seq_lengths": [length]} if recipe.training.get("packing") else {})


def _labelled_row(length: int, recipe: Recipe) -> dict[str, Any]:
    return {"input_ids": [_TOKEN] * length, "attention_mask": [1] * length, "labels": 1}


def _tagged_row(length: int, recipe: Recipe) -> dict[str, Any]:
    return _labelled_row(length, recipe) | {"labels": [1] * length}


def _pair_row(length: int, recipe: Recipe) -> dict[str, Any]:
    return _labelled_row(length, recipe) | {"labels": [_TOKEN] * recipe.data.max_target_length}


_ROWS: dict[TaskType, Callable[[int, Recipe], dict[str, Any]]] = {
    TaskType.CAUSAL_LM: _text_row,
    TaskType.SEQ_CLS: _labelled_row,
    TaskType.TOKEN_CLS: _tagged_row,
    TaskType.SEQ_2_SEQ_LM: _pair_row,
}


def _chosen(rows: Dataset) -> tuple[list[int], list[int]]:
    """Choose the rows with the most characters, and some spread over all."""
    sizes: list[int] = []
    for batch in rows.iter(batch_size=1000):
        columns: Any = batch
        sizes += [
            sum(len(str(value)) for value in row) for row in zip(*columns.values(), strict=True)
        ]
    longest = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)[:_LONGEST]
    step = max(len(sizes) // _SPREAD, 1)
    return longest, list(range(0, len(sizes), step))[:_SPREAD]


def _rows(encoded: Dataset) -> list[dict[str, Any]]:
    rows: Any = encoded
    return [dict(row) for row in rows]


def row_tokens(row: dict[str, Any]) -> int:
    """Return how many tokens a row has, those of a target of its own included."""
    labels = row.get("labels")
    target = len(labels) if isinstance(labels, list) and len(labels) != len(row["input_ids"]) else 0
    return len(row["input_ids"]) + target
