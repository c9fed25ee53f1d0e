"""Parse the conversation of an example: messages, tools and template variables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from datasets import Json

from lorakit.data import Place, describe_examples
from lorakit.data.chunks import Batch, over_chunks
from lorakit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

TOOLS, TEMPLATE_VARIABLES = "tools", "chat_template_kwargs"
"""Columns that are read besides the messages, named as in TRL."""

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
NOT_VARIABLES = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "self",
    "tokenize",
    "tokenizer",
    "tokenizer_kwargs",
    "truncation",
)
"""Arguments of rendering that the program sets, not an example."""


@dataclass(frozen=True)
class Conversation:
    """One example, ready for a chat template."""

    messages: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    """Tools and template variables."""
    untrained: frozenset[int] = frozenset()
    """Indices of messages with weight 0, whose tokens do not count."""
    prompt_turns: int = 0
    """Number of leading messages that are the prompt; the rest is the completion."""


class MalformedConversationError(ValueError):
    """An example is not a conversation; the message says why in a few words."""


def parse_conversation(example: Mapping[str, Any], *columns: str) -> Conversation:
    """Return the conversation of an example.

    It may be in two columns: the messages of the prompt, and those of the completion.

    ShareGPT's "from" and "value" are understood, content parts of text are joined, and lists that
    are stored as JSON strings are parsed.

    Args:
        example: The example; besides the messages it may have "tools" and "chat_template_kwargs".
        columns: Column of the messages, or the columns of prompt and completion.

    Raises:
        MalformedConversationError: It is not a conversation.
    """
    halves: list[list[dict[str, Any]]] = []
    for column in columns:
        try:
            halves.append(parse_messages(example[column]))
            if column == columns[-1] and all(m["role"] != "assistant" for m in halves[-1]):
                raise MalformedConversationError("no message by 'assistant'")
        except MalformedConversationError as problem:
            where = f" in '{column}'" if len(columns) > 1 else ""
            raise MalformedConversationError(f"{problem}{where}") from None
    messages = [message for half in halves for message in half]
    untrained = frozenset(
        turn for turn, message in enumerate(messages) if not message.pop("weight", True)
    )
    return Conversation(messages, _options(example), untrained, len(messages) - len(halves[-1]))


def with_system_prompt(talk: Conversation, text: str) -> Conversation:
    """Return a conversation whose system message is `text`.

    It replaces the one that the conversation begins with, or is put before the first message.
    """
    system = {"role": "system", "content": text}
    if talk.messages[0]["role"] == "system":
        return replace(talk, messages=[system, *talk.messages[1:]])
    return replace(
        talk,
        messages=[system, *talk.messages],
        untrained=frozenset(turn + 1 for turn in talk.untrained),
        prompt_turns=talk.prompt_turns and talk.prompt_turns + 1,
    )


def with_default_system(
    messages: Sequence[Mapping[str, Any]], text: str | None
) -> list[dict[str, Any]]:
    """Return the messages of a request, with `text` as system message if they begin with none.

    >>> with_default_system([{"role": "user", "content": "hi"}], "Be brief.")[0]
    {'role': 'system', 'content': 'Be brief.'}
    """
    given = [dict(message) for message in messages]
    if text is None or (given and given[0].get("role") == "system"):
        return given
    return [{"role": "system", "content": text}, *given]


def parse_messages(value: Any) -> list[dict[str, Any]]:
    """Return a list of messages; their weights, if any, are booleans.

    Raises:
        MalformedConversationError: It is not a list of messages.
    """
    given = _parse_cell(value, "messages")
    if not isinstance(given, list) or not given:
        raise MalformedConversationError("not a list of messages")
    if not all(isinstance(message, dict) for message in given):
        raise MalformedConversationError("a message that is not a mapping")
    messages = [_message(message) for message in given]
    for message in messages:
        if "weight" in message:
            message["weight"] = _is_trained(message["weight"])
    return messages


def _message(given: dict[str, Any]) -> dict[str, Any]:
    # A table gives every message every key; keys without a value were not in the file.
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
        for call in message["tool_calls"]:
            _require_arguments(call)
    elif "content" not in message:
        raise MalformedConversationError("a message without content")
    if "content" in message:
        message["content"] = _content(message["content"], message["role"])
    return message


def _require_arguments(call: Mapping[str, Any]) -> None:
    """Refuse a tool call whose arguments are a text that is no JSON object."""
    function = call.get("function", call)
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(arguments, str):
        return
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        raise MalformedConversationError(
            "a tool call whose arguments are a string that is not JSON"
        ) from None
    if not is_object:
        raise MalformedConversationError("a tool call whose arguments are not a JSON object")


def _content(content: Any, role: str) -> Any:
    """Return the text of a message, joining text parts; a tool's result may be any value."""
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
        raise MalformedConversationError(f"a message of weight {weight!r}, not 0 or 1")
    return bool(weight)


def _options(example: Mapping[str, Any]) -> dict[str, Any]:
    tools = _objects(example.get(TOOLS), TOOLS)
    options: dict[str, Any] = {"tools": tools} if tools else {}
    variables = _parse_cell(example.get(TEMPLATE_VARIABLES), TEMPLATE_VARIABLES)
    if variables is None:
        return options
    if not isinstance(variables, dict):
        raise MalformedConversationError(f"{TEMPLATE_VARIABLES} is not a mapping")
    taken = [key for key in variables if key in NOT_VARIABLES]
    if taken:
        raise MalformedConversationError(
            f"{TEMPLATE_VARIABLES} sets {taken[0]!r}, which is not a template variable"
        )
    return options | variables


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    """Return a list of mappings, given as such, as a JSON string or as a list of JSON strings."""
    value = _parse_cell(value, name)
    if value is None:
        return []
    items = [_parse_cell(item, name) for item in value] if isinstance(value, list) else None
    if items is None or not all(isinstance(item, dict) for item in items):
        raise MalformedConversationError(f"{name} is not a list of mappings")
    return items


def _parse_cell(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise MalformedConversationError(f"{name} is a string that is not JSON") from None


def drop_filled_nulls(example: dict[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """Return an example without the nulls that a table filled in.

    A table gives all mappings of a column the same keys, filled with nulls. Columns of type Json,
    as read from json and jsonl files, keep each mapping as written, nulls included.

    Args:
        example: The example.
        features: The features of its dataset, which a dataset copies at each access.
    """
    return {
        name: value if isinstance(features[name], Json) else _without_nulls(value)
        for name, value in example.items()
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


def check_conversations(dataset: Dataset, columns: Sequence[str], where: Place | str) -> None:
    """Check that each example is a conversation.

    Args:
        dataset: The examples.
        columns: Column of the messages, or the columns of prompt and completion.
        where: Name of the examples, for errors.

    Raises:
        DataError: Lists the examples of each problem.
    """
    read = [name for name in (*columns, TOOLS, TEMPLATE_VARIABLES) if name in dataset.column_names]

    def problems_of(batch: Batch, numbers: Sequence[int]) -> list[tuple[str, int]]:
        found = []
        for number, values in zip(numbers, zip(*batch.values(), strict=True), strict=True):
            try:
                parse_conversation(dict(zip(batch, values, strict=True)), *columns)
            except MalformedConversationError as problem:
                found.append((str(problem), number))
        return found

    wrong: dict[str, list[int]] = {}
    for found in over_chunks(dataset.select_columns(read), problems_of, "Checking"):
        for problem, number in found:
            wrong.setdefault(problem, []).append(number)
    if wrong:
        problems = "; ".join(f"{describe_examples(at, where)}: {why}" for why, at in wrong.items())
        raise DataError(
            f"Conversations are malformed in {where}, {describe_columns(columns)}: {problems}; "
            "expected a list of messages such as {'role': 'user', 'content': 'Hello'}, one of "
            f"{'the completion' if len(columns) > 1 else 'them'} by 'assistant'. Repair or remove "
            "these examples."
        )


def describe_columns(columns: Sequence[str]) -> str:
    """Return the names of columns, for messages.

    >>> describe_columns(["prompt", "completion"])
    "columns 'prompt' and 'completion'"
    """
    names = " and ".join(f"'{name}'" for name in columns)
    return f"columns {names}" if len(columns) > 1 else f"column {names}"
