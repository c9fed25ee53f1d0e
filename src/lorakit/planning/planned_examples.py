"""The examples of a planned step: the longest of the data, or examples of maximum length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedModel

from lorakit.config import SINGLE_LABEL, TaskType
from lorakit.data import Splits
from lorakit.data.preferences import PARTS, VOTES_KEY
from lorakit.models.pretrained import resolve_max_length
from lorakit.planning.sources import Sources
from lorakit.training.tasks import Encoded, Loaded, Task

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe

_TOKEN = 1


@dataclass(frozen=True)
class PlannedExamples:
    """Examples for a batch, and the amount of training data."""

    longest: list[dict[str, Any]]
    """Encoded examples, the longest first."""
    encoded: Encoded
    """The same examples as a trainer takes them."""
    train_examples: int | None
    """Examples of the whole run, after packing; None if the data is not local."""
    mean_tokens: float
    """Mean number of tokens of an example."""
    note: str
    """One sentence on the origin of the length."""


def planned_examples(sources: Sources, recipe: Recipe, model: PreTrainedModel) -> PlannedExamples:
    """Return the longest examples of the data, or examples of `data.max_length` tokens.

    Args:
        sources: Task, local data and tokenizer.
        recipe: The recipe.
        model: Model whose maximum length applies; its weights are not read.

    Raises:
        DataError, ConfigError: Errors of training for these examples.
    """
    if sources.longest is not None and sources.spread is not None and sources.has_tokenizer:
        loaded = Loaded(recipe, sources.tokenizer, sources.labels, model)
        return _from_data(
            sources.task, loaded, sources.longest, sources.spread, sources.train_examples
        )
    return _longest_allowed(sources, recipe, model)


def _from_data(
    task: Task, loaded: Loaded, longest: Splits, spread: Splits, train_examples: int | None
) -> PlannedExamples:
    count = train_examples or 0
    encoded = task.encode(longest, loaded)
    has_all = len(longest.train) == len(spread.train) == count
    some = encoded if has_all else task.encode(spread, loaded)
    lengths = [example_tokens(example) for example in _as_dicts(some.train)]
    limit = encoded.settings["max_length"]
    return PlannedExamples(
        longest=sorted(_as_dicts(encoded.train), key=example_tokens, reverse=True),
        encoded=encoded,
        # Examples without a counted token are dropped, and packing joins several into one.
        train_examples=max(round(count * len(lengths) / len(spread.train)), 1),
        mean_tokens=sum(lengths) / max(len(lengths), 1),
        note=f"The longest of {count:,} examples, at most {limit} tokens.",
    )


def _longest_allowed(sources: Sources, recipe: Recipe, model: PreTrainedModel) -> PlannedExamples:
    """Make an example of one repeated token."""
    length = resolve_max_length(recipe.data.max_length, model, sources.tokenizer)
    make = _EXAMPLES[sources.task.task_type] if recipe.objective is None else _answers_example
    example = make(length, recipe)
    made = Dataset.from_list([example])
    why = "examples" if sources.train_examples is None else "tokenizer"
    verb = "are" if sources.train_examples is None else "is"
    note = f"Examples of {length:,} tokens, because the {why} {verb} not local (data.max_length)."
    return PlannedExamples(
        [example], Encoded(made, None), sources.train_examples, float(length), note
    )


def _text_example(length: int, recipe: Recipe) -> dict[str, Any]:
    example: dict[str, Any] = {"input_ids": [_TOKEN] * length, "labels": [_TOKEN] * length}
    return example | ({"seq_lengths": [length]} if recipe.training.get("packing") else {})


def _answers_example(length: int, recipe: Recipe) -> dict[str, Any]:
    """Make two answers of half the length, to a prompt of the other half."""
    answer = max(length // 2, 1)
    parts = [max(length - answer, 1), answer, answer]
    made = {"input_ids": [_TOKEN] * sum(parts), "labels": [_TOKEN] * sum(parts), PARTS: parts}
    return made | ({VOTES_KEY: 1} if recipe.objective and recipe.objective.reads_votes else {})


def _labelled_example(length: int, recipe: Recipe) -> dict[str, Any]:
    is_class = recipe.data.problem_type in ("auto", SINGLE_LABEL)
    # Without the data, the head has the two outputs of transformers' default.
    labels = 1 if is_class else [0.0, 0.0]
    return {"input_ids": [_TOKEN] * length, "attention_mask": [1] * length, "labels": labels}


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


def _as_dicts(encoded: Dataset) -> list[dict[str, Any]]:
    examples: Any = encoded
    return [dict(example) for example in examples]


def example_tokens(example: dict[str, Any]) -> int:
    """Return the number of tokens of an example, including those of a separate target."""
    labels: Any = example.get("labels")
    is_sequence = isinstance(labels, list) and not any(isinstance(one, float) for one in labels)
    has_target = is_sequence and len(labels) != len(example["input_ids"])
    return len(example["input_ids"]) + (len(labels) if has_target else 0)
