"""Conversations: check them, render them with the chat template, count the assistant's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.training.data import row_list
from lorakit.training.tasks.text_formats import CountedIds
from lorakit.training.tasks.tokens import chat_columns

if TYPE_CHECKING:
    from datasets import Dataset

_CANNOT_COUNT = (
    "The assistant's tokens cannot be told from the others: the chat template of '{name}' has no "
    "{{% generation %}} markers around them (with the end-of-turn token inside), and it renders a "
    "conversation differently once more messages follow. Add the markers and name the template in "
    "training.chat_template_path, or set training.assistant_only_loss=false to count every token."
)


class ChatEncoder:
    """Turns a row of messages into token ids, counting what the assistant says.

    Where the template marks the assistant's words (or TRL knows a template of the same model that
    does), its marks are taken. Otherwise a conversation is rendered message by message: what each
    assistant message adds is the assistant's, its end-of-turn token included.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, column: str, assistant_only: bool, name: str
    ) -> None:
        """Choose how the assistant's tokens are found.

        Args:
            tokenizer: The base model's, with a chat template.
            column: Column of the messages.
            assistant_only: Whether only the assistant's tokens count in the loss.
            name: What to call the model in an error.

        Raises:
            ConfigError: The tokenizer has no chat template.
        """
        if not tokenizer.chat_template:
            raise ConfigError(
                f"Messages cannot be rendered: the tokenizer of '{name}' in model has no chat "
                "template. Name a Jinja file in training.chat_template_path, choose a chat model, "
                "or give the rows as prompt and completion."
            )
        self._tokenizer = tokenizer
        self._column = column
        self._assistant_only = assistant_only
        self._name = name
        self._marked = _marked_template(tokenizer) if assistant_only else None

    def __call__(self, row: Mapping[str, Any]) -> CountedIds:
        """Return the ids of one conversation and which of them count.

        Raises:
            ConfigError: The template gives no way to tell the assistant's tokens.
            DataError: The template refuses the conversation; its reason is passed on.
        """
        messages = clean_messages(row[self._column])
        options = _options(row)
        try:
            if not self._assistant_only:
                ids = self._render(messages, options)
                return CountedIds(ids, [True] * len(ids))
            if self._marked is not None:
                return self._by_marks(messages, options)
            return self._by_prefix(messages, options)
        except TemplateError as error:
            raise DataError(
                f"The chat template of '{self._name}' refuses a conversation in column "
                f"'{self._column}' that starts with {messages[0]}: {error}. Repair or remove it."
            ) from error

    def _render(
        self, messages: list[dict[str, Any]], options: dict[str, Any], **more: Any
    ) -> list[int]:
        return list(chat_columns(self._tokenizer, messages, **options, **more)["input_ids"])

    def _by_marks(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> CountedIds:
        made = chat_columns(
            self._tokenizer,
            messages,
            return_assistant_tokens_mask=True,
            chat_template=self._marked,
            **options,
        )
        return CountedIds(list(made["input_ids"]), [bool(m) for m in made["assistant_masks"]])

    def _by_prefix(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> CountedIds:
        whole = self._render(messages, options)
        counted = [False] * len(whole)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant" or turn == 0:
                continue
            before = self._render(messages[:turn], options, add_generation_prompt=True)
            until = self._render(messages[: turn + 1], options)
            if whole[: len(before)] != before or whole[: len(until)] != until:
                raise ConfigError(_CANNOT_COUNT.format(name=self._name))
            counted[len(before) : len(until)] = [True] * (len(until) - len(before))
        return CountedIds(whole, counted)


def _marked_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a template that marks the assistant's words and end-of-turn token, if there is one."""
    from trl.chat_template_utils import (
        get_training_chat_template,
        is_chat_template_stop_token_trained,
    )

    template = tokenizer.chat_template
    own: str = template["default"] if isinstance(template, dict) else template
    try:
        known = get_training_chat_template(tokenizer)
    except (ValueError, TemplateError):
        known = None if not _has_marks(own) else own
    candidate = own if known is None and _has_marks(own) else known
    if candidate is None or not is_chat_template_stop_token_trained(tokenizer, candidate):
        return None
    return candidate


def _has_marks(template: str) -> bool:
    from trl.chat_template_utils import has_generation_markers

    return has_generation_markers(template)


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row may say besides its messages: the tools the assistant can call."""
    tools = row.get("tools")
    return {"tools": tools} if isinstance(tools, list) and tools else {}


def clean_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with "role" and "content", also from ShareGPT's "from" and "value".

    >>> clean_messages([{"from": "human", "value": "hi"}])
    [{'role': 'user', 'content': 'hi'}]
    """
    roles = {"human": "user", "gpt": "assistant", "bot": "assistant"}
    if messages and "from" in messages[0] and "role" not in messages[0]:
        return [{"role": roles.get(m["from"], m["from"]), "content": m["value"]} for m in messages]
    # A table gives every message every key; those without a value were never there.
    return [{key: value for key, value in m.items() if value is not None} for m in messages]


def check_conversations(rows: Dataset, column: str, where: str) -> None:
    """Check that each row is a conversation.

    Raises:
        DataError: Lists, for each problem, the rows that have it.
    """
    wrong: dict[str, list[int]] = {}
    values: list[Any] = rows[column][:]
    for row, messages in enumerate(values):
        problem = _problem(messages)
        if problem:
            wrong.setdefault(problem, []).append(row)
    if wrong:
        listed = "; ".join(f"{row_list(at)}: {problem}" for problem, at in wrong.items())
        raise DataError(
            f"Conversations are malformed in {where}, column '{column}': {listed}; expected a list "
            "of messages such as {'role': 'user', 'content': 'Hello'}, one of them by 'assistant'. "
            "Repair or remove these rows."
        )


def _problem(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "no list of messages"
    if not all(isinstance(message, dict) for message in messages):
        return "a message is no mapping"
    for message in clean_messages(messages):
        if not isinstance(message.get("role"), str):
            return "a message without a role"
        if "content" not in message and "tool_calls" not in message:
            return "a message without content"
    if all(message["role"] != "assistant" for message in clean_messages(messages)):
        return "no message by 'assistant'"
    return None


def read_template(path: str) -> str:
    """Read a chat template from a Jinja file.

    Raises:
        MissingFileError: There is no such file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(
            f"No chat template in training.chat_template_path: got '{path}', expected a Jinja file "
            "that is there. Check the path; it is taken from the current directory."
        )
    return file.read_text(encoding="utf-8")
