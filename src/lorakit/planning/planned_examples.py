"""The rows a step is planned for: the longest there are, or rows as long as may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedModel

from lorakit.config import TaskType
from lorakit.data import Splits
from lorakit.models.pretrained import resolve_max_length
from lorakit.planning.sources import Sources
from lorakit.training.tasks import Encoded, Task

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe

_TOKEN = 1


@dataclass(frozen=True)
class PlannedExamples:
    """What a batch is made of, and how much there is to train on."""

    longest: list[dict[str, Any]]
    """Encoded rows, the longest first."""
    encoded: Encoded
    """The rows looked at, as a trainer takes them."""
    train_examples: int | None
    """Of the whole run, packed ones where rows are packed; None where the data is not here."""
    mean_tokens: float
    """Of a row."""
    note: str
    """Where the length comes from, one sentence."""


def planned_examples(
    sources: Sources, recipe: Recipe, task: Task, model: PreTrainedModel
) -> PlannedExamples:
    """Return the rows to plan for: the longest of the data, or as long as `data.max_length` allows.

    Args:
        sources: What is here of data and tokenizer.
        recipe: The recipe.
        task: Its task.
        model: Its limit holds; its weights are not read.

    Raises:
        DataError, ConfigError: As training would raise for these rows.
    """
    if sources.longest is not None and sources.spread is not None and sources.has_tokenizer:
        return _from_data(sources, sources.longest, sources.spread, recipe, task, model)
    return _longest_allowed(sources, recipe, task.task_type, model)


def _from_data(
    sources: Sources,
    longest: Splits,
    spread: Splits,
    recipe: Recipe,
    task: Task,
    model: PreTrainedModel,
) -> PlannedExamples:
    def encoded_of(rows: Splits) -> Encoded:
        return task.encode(rows, recipe, sources.tokenizer, model, sources.labels)

    count = sources.train_examples or 0
    encoded = encoded_of(longest)
    some = encoded if len(longest.train) == len(spread.train) == count else encoded_of(spread)
    lengths = [example_tokens(row) for row in _rows(some.train)]
    limit = encoded.settings["max_length"]
    return PlannedExamples(
        longest=sorted(_rows(encoded.train), key=example_tokens, reverse=True),
        encoded=encoded,
        # Rows without a token that counts are left out, and packing makes one row of several.
        train_examples=max(round(count * len(lengths) / len(spread.train)), 1),
        mean_tokens=sum(lengths) / max(len(lengths), 1),
        note=f"The longest of {count:,} examples, at most {limit} tokens.",
    )


def _longest_allowed(
    sources: Sources, recipe: Recipe, task_type: TaskType, model: PreTrainedModel
) -> PlannedExamples:
    """Make rows of a token repeated."""
    length = resolve_max_length(recipe.data.max_length, model, sources.tokenizer)
    row = _EXAMPLES[task_type](length, recipe)
    made = Dataset.from_list([row])
    why = "examples" if sources.train_examples is None else "tokenizer"
    verb = "are" if sources.train_examples is None else "is"
    note = f"Rows of {length:,} tokens, as the {why} {verb} not here (data.max_length)."
    return PlannedExamples([row], Encoded(made, None), sources.train_examples, float(length), note)


def _text_example(length: int, recipe: Recipe) -> dict[str, Any]:
    row: dict[str, Any] = {"input_ids": [_TOKEN] * length, "labels": [_TOKEN] * length}
    return row | ({"seq_lengths": [length]} if recipe.training.get("packing") else {})


def _labelled_example(length: int, recipe: Recipe) -> dict[str, Any]:
    return {"input_ids": [_TOKEN] * length, "attention_mask": [1] * length, "labels": 1}


def _tagged_example(length: int, recipe: Recipe) -> dict[str, Any]:
    return _labelled_example(length, recipe) | {"labels": [1] * length}


def _pair_example(length: int, recipe: Recipe) -> dict[str, Any]:
    return _labelled_example(length, recipe) | {"labels": [_TOKEN] * recipe.data.max_target_length}


_EXAMPLES: dict[TaskType, Callable[[int, Recipe], dict[str, Any]]] = {
    TaskType.CAUSAL_LM: _text_example,
    TaskType.SEQ_CLS: _labelled_example,
    TaskType.TOKEN_CLS: _tagged_example,
    TaskType.SEQ_2_SEQ_LM: _pair_example,
}


def _rows(encoded: Dataset) -> list[dict[str, Any]]:
    rows: Any = encoded
    return [dict(row) for row in rows]


def example_tokens(row: dict[str, Any]) -> int:
    """Return how many tokens a row has, those of a target of its own included."""
    labels = row.get("labels")
    target = len(labels) if isinstance(labels, list) and len(labels) != len(row["input_ids"]) else 0
    return len(row["input_ids"]) + target
