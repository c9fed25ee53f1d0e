"""Infer task, columns and lengths from data, to write a recipe for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets import Dataset

from lorakit.config import TaskType
from lorakit.data import Place
from lorakit.data.preferences import check_preferences, find_preferences
from lorakit.data.reading.files import no_examples
from lorakit.data.reading.sources import pick_split, read_source
from lorakit.data.text_formats import ALPACA, alpaca_prompt, conversation_columns
from lorakit.data.text_lengths import join_texts, longest_conversation, longest_text
from lorakit.errors import ConfigError, DataError
from lorakit.recipes.objective_section import ObjectiveConfig, ObjectiveType
from lorakit.recipes.recipe import DataConfig
from lorakit.training.recognized_columns import Columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BETWEEN = 2
"""Maximum number of special tokens between the texts of a pair."""
_WANTED = {
    TaskType.SEQ_CLS: "a column of texts and one of classes",
    TaskType.TOKEN_CLS: "a column with a list of words and one with a tag for each of them",
    TaskType.SEQ_2_SEQ_LM: "a column of texts and one of the texts to write",
    TaskType.CAUSAL_LM: "texts, prompts with completions, instructions or messages",
}


@dataclass(frozen=True)
class Recognized:
    """The result of `recognize`."""

    task: TaskType
    columns: Mapping[str, str]
    """Values to set under `data:`, by key."""
    examples: int
    names: tuple[str, ...]
    """Names of all columns."""
    notes: tuple[str, ...]
    """Notes for the user to check, one sentence each."""
    tokens: int
    """Number of tokens of the longest input, or slightly more."""
    target_tokens: int | None
    """Number of tokens of the longest target of SEQ_2_SEQ_LM."""
    is_counted: bool
    """Whether the model's tokenizer counted the tokens; else they are estimated."""
    objective: ObjectiveType | None = None
    """What preferences are trained with; None for examples of right answers."""


def recognize(
    name: str,
    task: TaskType | None,
    tokenizer: PreTrainedTokenizerBase | None,
    objective: ObjectiveType | None = None,
) -> Recognized:
    """Infer the `data:` section of a recipe from a file or a saved dataset.

    Args:
        name: The value of `data.train`, on this machine.
        task: The task; None infers it.
        tokenizer: The model's tokenizer; None estimates lengths from characters.
        objective: What preferences are trained with, of this task; None infers from the columns
            whether they are preferences.

    Raises:
        MissingFileError: The data does not exist.
        DataError: It cannot be read, or cannot be trained on.
        ConfigError: The task does not fit the data, or cannot be inferred from it.
    """
    data = DataConfig(train=name)
    found = pick_split(read_source(name, None, "data.train"), "train", name, "data.train_split")
    if not len(found.dataset):
        raise DataError(no_examples(f"'{name}' (data.train)"))
    place = Place(f"the training examples of '{name}'", lines=found.lines)
    seen = Columns(found.dataset, data, place)
    learns = objective or seen.infer_objective(task)
    if learns is not None:
        return _recognize_preferences(seen, learns, found.notes, tokenizer)
    inferred = seen.infer_task()
    chosen = task or inferred
    if chosen is None:
        raise ConfigError(
            f"The task cannot be inferred from '{name}': got {seen.description}, expected "
            f"{'; '.join(_WANTED.values())}. Name it with --task: {', '.join(TaskType)}."
        )
    columns, notes = seen.columns_for(chosen)
    if columns is None:
        hint = f" They look like those of --task {inferred}." if inferred else ""
        raise ConfigError(
            f"--task {chosen} does not fit '{name}': got {seen.description}, expected "
            f"{_WANTED[chosen]}.{hint} Choose another task or file."
        )
    inputs, targets = _texts(found.dataset, chosen, columns)
    has_template = tokenizer is not None and bool(tokenizer.chat_template)
    talk = conversation_columns(
        found.dataset, columns.get("format", ""), data.model_copy(update=columns)
    )
    if talk and tokenizer is not None and has_template:
        tokens = longest_conversation(found.dataset, talk, inputs, tokenizer)
    else:
        tokens = longest_text(inputs, tokenizer) + _BETWEEN * ("text_pair" in columns)
    return Recognized(
        task=chosen,
        columns=columns,
        examples=len(found.dataset),
        names=tuple(found.dataset.column_names),
        notes=(*found.notes, *notes),
        tokens=tokens,
        target_tokens=None if targets is None else longest_text(targets, tokenizer),
        is_counted=tokenizer is not None and (has_template or not talk),
    )


def column_names(name: str) -> tuple[str, ...]:
    """Return the names of the columns of a file or a saved dataset.

    Args:
        name: The value of `data.train`, on this machine.

    Raises:
        MissingFileError: The data does not exist.
        DataError: It cannot be read.
    """
    found = pick_split(read_source(name, None, "data.train"), "train", name, "data.train_split")
    return tuple(found.dataset.column_names)


def _texts(
    examples: Dataset, task: TaskType, columns: Mapping[str, str]
) -> tuple[list[str], list[str] | None]:
    """Return the input texts of each example, joined, and the targets of SEQ_2_SEQ_LM."""
    if task == TaskType.SEQ_2_SEQ_LM:
        return join_texts(examples, [columns["source"]]), join_texts(examples, [columns["target"]])
    if task == TaskType.CAUSAL_LM and columns["format"] == "alpaca":
        wording = alpaca_prompt("", "x")  # longer than what most chat templates add
        names = [name for name in ALPACA if name in examples.column_names]
        return [f"{wording}{text}" for text in join_texts(examples, names)], None
    others = ("format", "label", "label_separator", "tags")
    names = [name for key, name in columns.items() if key not in others]
    return join_texts(examples, names or ["prompt", "completion"]), None


def _recognize_preferences(
    seen: Columns,
    type: ObjectiveType,
    notes: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
) -> Recognized:
    """Return what preferences contain, checked as in training."""
    objective = ObjectiveConfig(type=type)
    layout = find_preferences(seen.examples, seen.data, objective, seen.place)
    check_preferences(seen.examples, layout, seen.place)
    prompts = [] if layout.prompt is None else [layout.prompt]
    tokens = max(
        longest_text(join_texts(seen.examples, [*prompts, answer]), tokenizer)
        for answer in layout.answers
    )
    if layout.vote is None:
        about = f"Each example has a better answer, '{layout.answers[0]}', and a worse one."
    else:
        about = f"Each example has an answer, and in '{layout.vote}' whether it is good."
    return Recognized(
        task=objective.task,
        columns={"format": layout.name},
        examples=len(seen.examples),
        names=tuple(seen.names),
        notes=(*notes, about, *layout.notes[1:]),
        tokens=tokens,
        target_tokens=None,
        is_counted=tokenizer is not None and not layout.is_conversation,
        objective=type,
    )
