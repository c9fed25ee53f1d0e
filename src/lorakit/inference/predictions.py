"""Predict many inputs at once, whatever the adapter's task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorakit.config import TaskType
from lorakit.inference.generation import generate_text
from lorakit.inference.loaded import LoadedModel, load_for_inference
from lorakit.inference.prediction import TaggedWord, TextOutput, classify, tag

Input = str | tuple[str, str] | Sequence[str] | Sequence[Mapping[str, Any]]
"""A text, a pair of texts, words, or the messages of a conversation."""

Prediction = TextOutput | list[TaggedWord] | str
"""A class, labels or numbers, the tags of the words, or a new text."""


def predict(
    loaded: LoadedModel,
    inputs: Sequence[Input],
    use_base: bool = False,
    *,
    batch_rows: int = 32,
    max_new_tokens: int | None = None,
) -> list[Any]:
    """Classify, tag, continue or answer inputs, in batches of like length.

    Args:
        loaded: An adapter on its base.
        inputs: Texts; pairs of texts for an adapter trained on pairs, lists of words for one that
            tags, conversations for one trained on them.
        use_base: Whether the base model answers without the adapter.
        batch_rows: Largest number of inputs in a batch.
        max_new_tokens: Maximum length of a new text; None takes that of training, or 64.

    Returns: A `Classification`, `LabelSet` or `Numbers` (SEQ_CLS), a list of `TaggedWord`
        (TOKEN_CLS) or a text for each input, in their order. Texts are the likeliest, token
        by token.

    Raises:
        DataError: An input does not suit the adapter.
    """
    order = sorted(range(len(inputs)), key=lambda number: -_characters(inputs[number]))
    of_task: dict[TaskType, Callable[..., list[Any]]] = {
        TaskType.SEQ_CLS: classify,
        TaskType.TOKEN_CLS: tag,
    }
    write = partial(generate_text, max_new_tokens=max_new_tokens)
    run = of_task.get(loaded.task_type, write)
    made = run(loaded, [inputs[number] for number in order], use_base, batch_rows=batch_rows)
    results: list[Any] = [None] * len(inputs)
    for number, prediction in zip(order, made, strict=True):
        results[number] = prediction
    return results


def _characters(given: Any) -> int:
    if isinstance(given, str):
        return len(given)
    if isinstance(given, Mapping):
        return sum(len(value) for value in given.values() if isinstance(value, str))
    return sum(_characters(part) for part in given)


@dataclass(frozen=True)
class LoadedRun:
    """A run, or any adapter, loaded with its base, tokenizer, labels and format."""

    loaded: LoadedModel

    @property
    def task_type(self) -> TaskType:
        """What it was trained for."""
        return self.loaded.task_type

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class or tag names by id; None for a model that writes text."""
        return self.loaded.labels

    def predict(self, inputs: Sequence[Input], use_base: bool = False, **options: Any) -> list[Any]:
        """Predict inputs; see `lorakit.inference.predict`.

        Args:
            inputs: Texts, or what else the adapter was trained on.
            use_base: Whether the base model answers without the adapter.
            options: `batch_rows`, `max_new_tokens`.
        """
        if isinstance(inputs, str):
            inputs = [inputs]
        return predict(self.loaded, inputs, use_base, **options)


def load_run(path: str | Path, base: str | None = None, **options: Any) -> LoadedRun:
    """Load a run or an adapter to predict with; nothing of the training data is needed.

    Args:
        path: A run directory, an adapter or checkpoint directory, or the hub id of an adapter.
        base: Base model; None takes the one the adapter names.
        options: Options of `load_for_inference`, such as `device` or `dtype`.

    Raises:
        MissingFileError: The adapter or the base does not exist.
        LorakitError: They cannot be loaded; see `load_for_inference`.
    """
    return LoadedRun(load_for_inference(path, base, **options))
