"""What a plan reads: rows, labels and a tokenizer, where they are here; once for many plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from lorakit.data import Splits, is_local, load_splits
from lorakit.errors import MissingFileError
from lorakit.training.tasks import Task
from lorakit.training.tasks.base import seed_of

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe

_LONGEST = 256
"""Rows with the most characters that are made into tokens; among them are those with the most."""
_SPREAD = 256
"""Rows spread evenly over the data, whose mean length is taken for that of all."""
_MEASURED = 100_000
"""Rows whose characters are counted, spread evenly over larger data."""


@dataclass(frozen=True)
class Sources:
    """What a plan knows of a recipe's data and model besides the model's configuration."""

    tokenizer: PreTrainedTokenizerBase
    has_tokenizer: bool
    """Whether it is the base's own; else it is one of a single word."""
    labels: tuple[str, ...] | None
    train_examples: int | None
    """Rows to train on; None where they are not here."""
    longest: Splits | None
    """The rows with the most characters, as many as a batch has or more."""
    spread: Splits | None
    """Rows spread evenly over all."""


def find_sources(recipe: Recipe, task: Task, *, download: bool = False) -> Sources:
    """Read what a plan needs of a recipe's rows, and its tokenizer.

    Args:
        recipe: The recipe; what is found does for every recipe with the same model and data.
        task: Its task.
        download: Whether rows and tokenizer may be fetched from the hub.

    Raises:
        MissingFileError, DataError: A local file is not there or cannot be read.
    """
    tokenizer, has_tokenizer = _tokenizer(recipe, task, download)
    names = [name for name in (recipe.data.train, recipe.data.validation) if name is not None]
    if not download and not all(is_local(name) for name in names):
        return Sources(tokenizer, has_tokenizer, None, None, None, None)
    seed = seed_of(recipe)
    splits = load_splits(recipe.data, seed, task.label_column(recipe), task.columns(recipe))
    train, labels = splits.train, task.labels(splits, recipe)
    batch = int(recipe.training.get("per_device_train_batch_size", 0))
    longest = splits.training_only(_with_most_characters(train, max(_LONGEST, batch)))
    spread = splits.training_only(range(0, len(train), max(len(train) // _SPREAD, 1)))
    return Sources(tokenizer, has_tokenizer, labels, len(train), longest, spread)


def _tokenizer(recipe: Recipe, task: Task, download: bool) -> tuple[PreTrainedTokenizerBase, bool]:
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


def _with_most_characters(rows: Dataset, count: int) -> list[int]:
    step = max(len(rows) // _MEASURED, 1)
    places = range(0, len(rows), step)
    sizes: list[int] = []
    for batch in rows.select(places).iter(batch_size=1000):
        columns: Any = batch
        sizes += [
            sum(len(str(value)) for value in row) for row in zip(*columns.values(), strict=True)
        ]
    order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
    return sorted(places[index] for index in order[:count])
