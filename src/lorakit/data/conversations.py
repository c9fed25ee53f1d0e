"""Conversations as examples have them: messages, tools and what else a chat template is given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasets import Json

from lorakit.data import Place, listed
from lorakit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

TOOLS, TEMPLATE_VARIABLES = "tools", "chat_template_kwargs"
"""Columns that are read beside the messages, called as TRL calls them."""

_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_NOT_VARIABLES = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
)
"""What rendering is told by the program, not by an example."""


@dataclass(frozen=True)
class Conversation:
    """One example, ready for a chat template."""

    messages: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    """Tools, and variables of the template."""
    untrained: frozenset[int] = frozenset()
    """Which messages have weight 0: none of their tokens counts."""
    prompt_turns: int = 0
    """How many messages at the beginning are the prompt, where the rest is the completion."""


class MalformedConversationError(ValueError):
    """What is wrong with one example; the message is a few words."""


def conversation_of(row: Mapping[str, Any], *columns: str) -> Conversation:
    """Return the conversation of an example.

    It may stand in two columns: the prompt's messages, and those of the completion.

    ShareGPT's "from" and "value" are understood, texts in parts are joined, and lists that were
    stored as JSON texts are parsed.

    Args:
        row: The example; besides the messages it may have "tools" and "chat_template_kwargs".
        columns: Column of the messages, or those of the prompt's and the completion's.

    Raises:
        MalformedConversationError: It is none.
    """
    parts: list[list[dict[str, Any]]] = []
    for column in columns:
        try:
            parts.append(_messages(row[column]))
            if column == columns[-1] and all(m["role"] != "assistant" for m in parts[-1]):
                raise MalformedConversationError("no message by 'assistant'")
        except MalformedConversationError as problem:
            where = f" in '{column}'" if len(columns) > 1 else ""
            raise MalformedConversationError(f"{problem}{where}") from None
    messages = [message for part in parts for message in part]
    untrained = frozenset(
        turn for turn, message in enumerate(messages) if not message.pop("weight", True)
    )
    return Conversation(messages, _options(row), untrained, len(messages) - len(parts[-1]))


def _messages(value: Any) -> list[dict[str, Any]]:
    """Return a list of messages, each with a weight that is true or false if it has one."""
    given = _parsed(value, "messages")
    if not isinstance(given, list) or not given:
        raise MalformedConversationError("no list of messages")
    if not all(isinstance(message, dict) for message in given):
        raise MalformedConversationError("a message is no mapping")
    messages = [_message(message) for message in given]
    for message in messages:
        if "weight" in message:
            message["weight"] = _is_trained(message["weight"])
    return messages


def _message(given: dict[str, Any]) -> dict[str, Any]:
    # A table gives every message every key; those without a value were never there.
    message = {key: value for key, value in given.items() if value is not None}
    if "from" in message and "role" not in message:
        role = message.pop("from")
        message["role"] = _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
        if "value" in message:
            message["content"] = message.pop("value")
        message = {key: message[key] for key in ("role", *(k for k in message if k != "role"))}
    if not isinstance(message.get("role"), str):
        raise MalformedConversationError("a message without a role")
    if "tool_calls" in message:
        message["tool_calls"] = _objects(message["tool_calls"], "tool_calls")
    elif "content" not in message:
        raise MalformedConversationError("a message without content")
    if "content" in message:
        message["content"] = _content(message["content"], message["role"])
    return message


def _content(content: Any, role: str) -> Any:
    """Return a text, also of parts; what a tool returned may be a value of any kind."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else None
    if parts is not None and all(_is_text_part(part) for part in parts):
        return "".join(part if isinstance(part, str) else part["text"] for part in parts)
    if role == "tool":
        return content
    if parts is None:
        raise MalformedConversationError(f"a message whose content is {type(content).__name__}")
    other = next(part for part in parts if not _is_text_part(part))
    kind = other.get("type") if isinstance(other, dict) else type(other).__name__
    raise MalformedConversationError(
        f"a message with a part of type {kind!r}, where only text is read"
    )


def _is_text_part(part: Any) -> bool:
    if isinstance(part, dict):
        return part.get("type", "text") == "text" and isinstance(part.get("text"), str)
    return isinstance(part, str)


def _is_trained(weight: Any) -> bool:
    if not isinstance(weight, (bool, int, float)) or weight not in (0, 1):
        raise MalformedConversationError(f"a message of weight {weight!r}, where 0 or 1 is taken")
    return bool(weight)


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    tools = _objects(row.get(TOOLS), TOOLS)
    options: dict[str, Any] = {"tools": tools} if tools else {}
    variables = _parsed(row.get(TEMPLATE_VARIABLES), TEMPLATE_VARIABLES)
    if variables is None:
        return options
    if not isinstance(variables, dict):
        raise MalformedConversationError(f"{TEMPLATE_VARIABLES} is no mapping")
    taken = [key for key in variables if key in _NOT_VARIABLES]
    if taken:
        raise MalformedConversationError(
            f"{TEMPLATE_VARIABLES} sets {taken[0]!r}, no template variable"
        )
    return options | variables


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    """Return a list of mappings, which may be a JSON text or a list of JSON texts."""
    value = _parsed(value, name)
    if value is None:
        return []
    items = [_parsed(item, name) for item in value] if isinstance(value, list) else None
    if items is None or not all(isinstance(item, dict) for item in items):
        raise MalformedConversationError(f"{name} is no list of mappings")
    return items


def _parsed(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise MalformedConversationError(f"{name} is a text that is no JSON") from None


def without_fillings(row: dict[str, Any], rows: Dataset) -> dict[str, Any]:
    """Return an example without the nulls that a table's columns brought into it.

    A table gives all mappings of a column the same keys. In a json or jsonl file, and in columns
    of the type Json, each mapping has its own, and a null there was written.

    Args:
        row: The example.
        rows: The dataset it is from.
    """
    return {
        name: value if isinstance(rows.features[name], Json) else _without_nulls(value)
        for name, value in row.items()
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def is_conversation(value: Any) -> bool:
    """Return whether a value looks like the messages of a conversation.

    >>> is_conversation([{"from": "human", "value": "hi"}]), is_conversation(["hi"])
    (True, False)
    """
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    pairs = (("role", "content"), ("from", "value"))
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and any(one in value[0] and other in value[0] for one, other in pairs)
    )


def check_conversations(rows: Dataset, columns: Sequence[str], where: Place | str) -> None:
    """Check that each example is a conversation.

    Args:
        rows: The examples.
        columns: Column of the messages, or those of the prompt's and the completion's.
        where: What to call the examples in the error.

    Raises:
        DataError: Lists, for each problem, the examples that have it.
    """
    read = [name for name in (*columns, TOOLS, TEMPLATE_VARIABLES) if name in rows.column_names]
    wrong: dict[str, list[int]] = {}
    examples: Any = rows.select_columns(read)
    for number, row in enumerate(examples):
        try:
            conversation_of(row, *columns)
        except MalformedConversationError as problem:
            wrong.setdefault(str(problem), []).append(number)
    if wrong:
        problems = "; ".join(f"{listed(at, where)}: {said}" for said, at in wrong.items())
        raise DataError(
            f"Conversations are malformed in {where}, {named_columns(columns)}: {problems}; "
            "expected a list of messages such as {'role': 'user', 'content': 'Hello'}, one of "
            f"{'the completion' if len(columns) > 1 else 'them'} by 'assistant'. Repair or remove "
            "these examples."
        )


def named_columns(columns: Sequence[str]) -> str:
    """Return columns as a message names them.

    >>> named_columns(["prompt", "completion"])
    "columns 'prompt' and 'completion'"
    """
    names = " and ".join(f"'{name}'" for name in columns)
    return f"columns {names}" if len(columns) > 1 else f"column {names}"
