"""The examples of a recipe as the model will see them, without loading weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.recipes.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from lorakit.training.encoded import PreviewExample

_MOST_MEASURED = 5000
"""Most examples to encode; of larger data they are evenly spaced."""
_BINS = 24
SHOWN_TOKENS = 160
"""Tokens of a long example to show: half from its beginning, half from its end."""


@dataclass(frozen=True)
class EncodedExample:
    """One example as the model receives it."""

    tokens: tuple[str, ...]
    counted: tuple[bool, ...]
    """Which tokens count in the loss."""
    note: str
    """What the tokens do not show, such as the label."""
    prompt: int = 0
    """Number of leading tokens that are the prompt, where there are two answers to it."""
    rejected: EncodedExample | None = None
    """The worse answer, without the prompt, if there is one."""


@dataclass(frozen=True)
class DataPreview:
    """The result of `preview_data`."""

    columns: tuple[str, ...]
    """Names of all columns of the training data."""
    labels: tuple[str, ...]
    train_examples: int
    validation_examples: int
    measured_examples: int
    """Number of training examples behind the lengths and shares."""
    examples: tuple[EncodedExample, ...]
    lengths: tuple[tuple[int, int, int], ...]
    """Histogram: least and most tokens of each bin, and its number of examples."""
    longest: int
    cut_share: float
    """Share of the examples that are truncated to `max_length`."""
    padding_share: float
    """Share of the tokens of a training batch that is padding."""
    max_length: int
    notes: tuple[str, ...]
    """What was done to the data, one sentence each, as `lorakit train` prints it."""


def preview_data(recipe: Recipe, examples: int = 10) -> DataPreview:
    """Read and encode the data of a recipe as training does.

    Of the base, only its configuration and tokenizer are read.

    Args:
        recipe: The recipe.
        examples: Number of examples to return as tokens.

    Raises:
        ConfigError, MissingFileError, DataError: As training raises.
    """
    from lorakit.data import load_splits
    from lorakit.data.like_length import token_lengths
    from lorakit.models.pretrained import auto_model, label_options
    from lorakit.models.skeleton import load_skeleton
    from lorakit.training.starting_point import StartingPoint
    from lorakit.training.tasks import task_of, task_of_examples
    from lorakit.training.tasks.base import Loaded, loading_options, seed_of

    task = task_of(recipe)
    splits = load_splits(
        recipe.data, seed_of(recipe), task.label_column(recipe), task.columns(recipe)
    )
    task = task_of_examples(recipe, splits)
    start = StartingPoint.of(recipe)
    labels = (start and start.labels) or task.labels(splits, recipe)
    tokenizer = task.load_tokenizer(recipe, start and start.tokenizer)
    options = loading_options(recipe)
    model = load_skeleton(
        auto_model(task.task_type),
        recipe.model,
        **options,
        **label_options(labels, task.problem_type),
    )
    count = len(splits.train)
    some = splits.training_only(_spread(count, examples)) if count > _MOST_MEASURED else splits
    loaded = Loaded(recipe, tokenizer, labels, model)
    encoded = task.encode(some, loaded)
    shown = task.preview_examples(encoded, loaded, examples)
    lengths = token_lengths(encoded.train)
    totals = lengths.sum(1).tolist()
    return DataPreview(
        columns=tuple(splits.train.column_names),
        labels=labels or (),
        train_examples=count,
        validation_examples=0 if splits.validation is None else len(splits.validation),
        measured_examples=len(some.train),
        examples=tuple(map(_to_encoded_example, shown)),
        lengths=histogram(totals),
        longest=max(totals),
        cut_share=encoded.cut_examples / len(some.train),
        padding_share=_padding_share(lengths, recipe, task, splits),
        max_length=int(encoded.settings["max_length"]),
        notes=(*splits.notes, *encoded.notes),
    )


def _spread(count: int, first: int) -> list[int]:
    """Return the first examples and evenly spaced others."""
    step = -(-count // _MOST_MEASURED)
    return sorted({*range(first), *range(0, count, step)})


def _to_encoded_example(example: PreviewExample) -> EncodedExample:
    rejected = None if example.rejected is None else _to_encoded_example(example.rejected)
    return EncodedExample(
        tuple(example.tokens), tuple(example.counted), example.note, example.prompt, rejected
    )


def _padding_share(lengths: Tensor, recipe: Recipe, task: Any, splits: Any) -> float:
    """Return the share of padding in an epoch's batches, in the order of training."""
    import torch

    from lorakit.data.like_length import like_length_order, padding_share
    from lorakit.training.arguments import resolve_training
    from lorakit.training.trainers.batching import GROUP_BY_LENGTH, pads_nothing

    has_validation = splits.validation is not None
    training = resolve_training(recipe, task, len(splits.train), has_validation)
    if pads_nothing(training):
        return 0.0
    batch = training["per_device_train_batch_size"]
    generator = torch.Generator().manual_seed(training["seed"])
    if training["train_sampling_strategy"] == GROUP_BY_LENGTH:
        step_examples = batch * training["gradient_accumulation_steps"]
        order = like_length_order(lengths, step_examples, generator)
    else:
        order = torch.randperm(len(lengths), generator=generator)
    return padding_share(lengths, order, batch, training.get("pad_to_multiple_of") or 1)


def histogram(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Return bins of equal width: least and most tokens of each, and its number of examples.

    >>> histogram([3, 3, 5])
    ((3, 3, 2), (4, 4, 0), (5, 5, 1))
    """
    least, most = min(lengths), max(lengths)
    width = -(-(most - least + 1) // _BINS)
    counts = [0] * ((most - least) // width + 1)
    for length in lengths:
        counts[(length - least) // width] += 1
    return tuple(
        (least + n * width, min(least + (n + 1) * width - 1, most), count)
        for n, count in enumerate(counts)
    )


def shorten_middle(
    tokens: Sequence[str], counted: Sequence[bool], most: int = SHOWN_TOKENS
) -> tuple[list[str], list[bool]]:
    """Omit the middle of a long example.

    >>> shorten_middle(["a", "b", "c", "d", "e"], [False] * 5, most=2)
    (['a', '[... 3 more ...]', 'e'], [False, False, False])
    """
    if len(tokens) <= most:
        return list(tokens), list(counted)
    half = most // 2
    gap = f"[... {len(tokens) - 2 * half:,} more ...]"
    return (
        [*tokens[:half], gap, *tokens[-half:]],
        [*counted[:half], False, *counted[-half:]],
    )
