"""Examples, labels and tokenizer for a plan, as far as they are local; read once for many plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from lorakit.data import Splits, load_splits
from lorakit.errors import MissingFileError
from lorakit.recipes.data_names import is_local
from lorakit.training.setup import require_known_labels, require_same_problem
from lorakit.training.starting_point import StartingPoint
from lorakit.training.tasks import Task, task_for, task_of_examples
from lorakit.training.tasks.base import seed_of

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe

_LONGEST = 256
"""Number of examples with the most characters to tokenize; they include the longest."""
_SPREAD = 256
"""Number of evenly spaced examples whose mean length estimates that of all."""
_MEASURED = 100_000
"""Most examples whose characters are counted, evenly spaced in larger data."""


@dataclass(frozen=True)
class Sources:
    """Data and tokenizer of a recipe that a plan uses, besides the model's configuration."""

    task: Task
    """The task of the recipe, for what its labels are."""
    tokenizer: PreTrainedTokenizerBase
    has_tokenizer: bool
    """Whether the tokenizer is that of the base; otherwise it has a single word."""
    labels: tuple[str, ...] | None
    train_examples: int | None
    """Number of training examples; None if they are not local."""
    longest: Splits | None
    """Examples with the most characters, at least as many as a batch has."""
    spread: Splits | None
    """Evenly spaced examples."""


def find_sources(
    recipe: Recipe, task: Task, start: StartingPoint | None = None, *, download: bool = False
) -> Sources:
    """Read the examples and the tokenizer that a plan needs.

    Args:
        recipe: The recipe; the result is valid for every recipe with the same model and data.
        task: Task of the recipe.
        start: The adapter that the recipe starts from; by default it is read.
        download: Whether examples and tokenizer may be downloaded from the hub.

    Raises:
        MissingFileError, DataError: A local file is missing or cannot be read, or has labels that
            the adapter does not know.
        ConfigError: The adapter was trained on labels of another kind.
    """
    start = start or StartingPoint.of(recipe)
    tokenizer, has_tokenizer = _tokenizer(recipe, task, start, download)
    known = None if start is None else start.labels
    validation = recipe.data.validation
    names = [*recipe.data.train_names, *([] if validation is None else [validation])]
    if not download and not all(is_local(name) for name in names):
        given = recipe.data.problem_type
        task = task_for(recipe.task, None if given == "auto" else given)
        return Sources(task, tokenizer, has_tokenizer, known, None, None, None)
    seed = seed_of(recipe)
    splits = load_splits(recipe.data, seed, task.label_column(recipe), task.columns(recipe))
    task = task_of_examples(recipe, splits)
    train, found = splits.train, task.labels(splits, recipe)
    if start is not None:
        require_same_problem(task, start)
    if known is not None:
        column = task.label_column(recipe)
        require_known_labels(found or (), known, recipe.data.train_name, column)
    labels = known or found
    batch = int(recipe.training.get("per_device_train_batch_size", 0))
    longest = splits.training_only(_with_most_characters(train, max(_LONGEST, batch)))
    spread = splits.training_only(range(0, len(train), max(len(train) // _SPREAD, 1)))
    return Sources(task, tokenizer, has_tokenizer, labels, len(train), longest, spread)


def _tokenizer(
    recipe: Recipe, task: Task, start: StartingPoint | None, download: bool
) -> tuple[PreTrainedTokenizerBase, bool]:
    if start is not None and start.tokenizer is not None:
        return task.load_tokenizer(recipe, start.tokenizer), True
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


def _with_most_characters(examples: Dataset, count: int) -> list[int]:
    step = max(len(examples) // _MEASURED, 1)
    places = range(0, len(examples), step)
    sizes: list[int] = []
    for batch in examples.select(places).iter(batch_size=1000):
        columns: Any = batch
        sizes += [
            sum(len(str(value)) for value in example)
            for example in zip(*columns.values(), strict=True)
        ]
    order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
    return sorted(places[index] for index in order[:count])
