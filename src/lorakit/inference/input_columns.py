"""Which columns of a file are the inputs of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from lorakit.config import TaskType
from lorakit.data.conversations import (
    TEMPLATE_VARIABLES,
    TOOLS,
    MalformedConversationError,
    is_conversation,
    parse_messages,
)
from lorakit.data.reading.columns import is_missing, require_columns
from lorakit.data.text_formats import ALPACA
from lorakit.errors import DataError, escaped
from lorakit.inference.loaded import LoadedModel
from lorakit.recipes.recipe import DataConfig

_INSTRUCTION = "the alpaca column instruction"


@dataclass(frozen=True)
class InputColumns:
    """The columns that hold the inputs of an adapter.

    Attributes:
        names: The columns by the recipe key that names each.
        task_type: The adapter's task.
        format: Layout of its training examples; None where there is only one.
        notes: What was found out, in sentences.
    """

    names: dict[str, str]
    task_type: TaskType
    format: str | None
    notes: tuple[str, ...] = ()

    def input_of(self, example: Mapping[str, Any], number: int, where: str) -> Any:
        """Return the input of an example; None if it has none.

        Args:
            example: Values by column.
            number: Number of the example in the file, from 1.
            where: Name of the file.

        Raises:
            DataError: A value is not what the adapter reads.
        """
        values: list[Any] = [example.get(name) for name in self.names.values()]
        has_instruction = _INSTRUCTION in self.names
        if is_missing(values[0]) or (not has_instruction and any(map(is_missing, values))):
            return None
        if self.task_type is TaskType.TOKEN_CLS and isinstance(values[0], list):
            return [str(word) for word in values[0]]
        if is_conversation(values[0]) and (
            isinstance(values[0], list) or self.format == "messages"
        ):
            found = f"example {number} of {where}"
            return _question(values[0], found, with_answer=self.task_type is TaskType.SEQ_CLS)
        for key, value in zip(self.names.items(), values, strict=True):
            if value is not None and not isinstance(value, str):
                raise DataError(
                    f"Cannot read example {number} of {where}: got {type(value).__name__} in the "
                    f"column '{escaped(key[1])}' ({key[0]}), expected text. Write it as text."
                )
        if has_instruction and (len(values) == 1 or is_missing(values[1])):
            return values[0]
        if has_instruction and self.format == "messages":
            return "\n\n".join(values)
        return values[0] if len(values) == 1 else tuple(values)


def _question(given: Any, where: str, *, with_answer: bool) -> list[Any]:
    """Return a conversation, without the answers at its end unless the model scores these."""
    try:
        kept = parse_messages(given)
    except MalformedConversationError as problem:
        raise DataError(f"Cannot read {where}: got {problem}. Repair or remove it.") from problem
    while not with_answer and len(kept) > 1 and kept[-1].get("role") == "assistant":
        kept.pop()
    return kept


def find_input_columns(loaded: LoadedModel, examples: Dataset, data: DataConfig) -> InputColumns:
    """Find the columns: those of the recipe, else the only column there is.

    Args:
        loaded: The adapter.
        examples: The file's examples.
        data: The recipe's section.

    Raises:
        DataError: A column is missing; names the nearest one.
    """
    wanted = _choose_columns(loaded, examples, data)
    there, kind = examples.column_names, loaded.settings.format
    unread = [name for name in (TOOLS, TEMPLATE_VARIABLES) if name in there and kind == "messages"]
    notes = tuple(f"The model is not given '{name}', as it was in training." for name in unread)
    missing = [name for name in wanted.values() if name not in there]
    if missing and len(wanted) == 1 and len(there) == 1:
        key = next(iter(wanted))
        note = f"The inputs are read from the column '{escaped(there[0])}' ({key})."
        return InputColumns({key: there[0]}, loaded.task_type, kind, (note,))
    require_columns(examples, wanted, "the file")
    return InputColumns(wanted, loaded.task_type, kind, notes)


def _choose_columns(loaded: LoadedModel, examples: Dataset, data: DataConfig) -> dict[str, str]:
    if loaded.task_type is TaskType.SEQ_CLS:
        if loaded.settings.format == "messages" and data.messages in examples.column_names:
            return {"data.messages": data.messages}
        pair = {"data.text_pair": data.text_pair or "text_pair"}
        return {"data.text": data.text} | (pair if loaded.settings.text_pair else {})
    if loaded.task_type is TaskType.TOKEN_CLS:
        has_words = data.tokens in examples.column_names
        return {"data.tokens": data.tokens} if has_words else {"data.text": data.text}
    if loaded.task_type is TaskType.SEQ_2_SEQ_LM:
        return {"data.source": data.source}
    there = examples.column_names
    instructions = {_INSTRUCTION: ALPACA[0]} | (
        {"the alpaca column input": ALPACA[1]} if ALPACA[1] in there else {}
    )
    if loaded.settings.format == "alpaca":
        return instructions
    if loaded.settings.format == "messages" and data.messages in there:
        return {"data.messages": data.messages}
    if loaded.settings.format == "messages" and data.prompt not in there:
        talks = [name for name, value in examples[0].items() if is_conversation(value)]
        if len(talks) == 1:
            return {"data.messages": talks[0]}
        if ALPACA[0] in there:
            return instructions
    has_prompts = data.prompt in there
    if has_prompts or loaded.settings.format in ("prompt_completion", "messages"):
        return {"data.prompt": data.prompt}
    return {"data.text": data.text}
