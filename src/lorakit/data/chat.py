"""Render conversations with the chat template, and find the tokens that count in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lorakit.data.conversations import (
    Conversation,
    describe_columns,
    parse_conversation,
    with_system_prompt,
)
from lorakit.data.text_formats import CountedIds, common_prefix_length
from lorakit.data.tokenizers import many_chat_columns, render_chat
from lorakit.errors import ConfigError, DataError, LorakitError, MissingFileError

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)
"""Errors that a template raises itself, or for a value of an unexpected type."""

_CANNOT_LEAVE_OUT = (
    "A message of weight 0 cannot be left out: the chat template of '{name}' renders a "
    "conversation differently once more messages follow, so its tokens cannot be identified. "
    "Remove the weight, or end the conversation before this message."
)
_PROMPT_CHANGES = (
    "The completion cannot be separated from the prompt: the chat template of '{name}' renders the "
    "prompt differently once the completion follows. Name a template that does not in "
    "training.chat_template_path{otherwise}."
)
_COUNT_PROMPTS = ", or set training.completion_only_loss=false to count the prompt's answers too"
_LAST_CHANGES = (
    "The last turn cannot be separated from the turns before it: the chat template of '{name}' "
    "renders these differently once an answer follows. Name a template that does not in "
    "training.chat_template_path, or leave data.turns out to count all turns."
)
_NO_SYSTEM = (
    "The system prompt cannot be rendered: got data.system_prompt, but the chat template of "
    "'{name}' has no system messages{why}. Leave it out, or name a template that has them in "
    "training.chat_template_path."
)
_CANNOT_COUNT = (
    "The assistant's tokens cannot be identified: the chat template of '{name}' has no "
    "{{% generation %}} markers around them (with the end-of-turn token inside), and it renders a "
    "conversation differently once more messages follow. Add the markers and name the template in "
    "training.chat_template_path{otherwise}."
)
_COUNT_ALL = ", or set training.assistant_only_loss=false to count every token"


class _Kind(Enum):
    """How the beginning of a conversation is rendered."""

    PLAIN = auto()
    ASKED = auto()
    """With the opening of an answer."""
    MARKED = auto()
    """With the marks of the assistant's tokens."""


@dataclass
class _Rendered:
    """What was rendered of a conversation."""

    ids: dict[tuple[int, bool], list[int]] = field(default_factory=dict)
    """The ids of the messages before a turn, without or with the opening of an answer."""
    marks: list[bool] = field(default_factory=list)
    """Which ids of the whole are marked as the assistant's."""


class ChatEncoder:
    """Encodes conversations into token ids, of which the assistant's count in the loss.

    If prompt and completion are separate columns, no token of the prompt counts. If only the last
    turn counts, all before the assistant's last message is the prompt.

    If the template marks the assistant's tokens (or TRL knows a template of the same model that
    does), the marks are used. Otherwise the conversation is rendered message by message: the tokens
    that an assistant message adds are the assistant's, its end-of-turn token included.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: Sequence[str],
        assistant_only: bool,
        name: str,
        *,
        counts_prompts: bool = False,
        last_turn_only: bool = False,
        compares_answers: bool = False,
        system_prompt: str | None = None,
    ) -> None:
        """Choose how to find the assistant's tokens.

        Args:
            tokenizer: The base model's tokenizer, with a chat template.
            columns: Column of the messages, or the columns of prompt and completion.
            assistant_only: Whether only the assistant's tokens count in the loss.
            name: Name of the model, for errors.
            counts_prompts: Whether prompts count like completions.
            last_turn_only: Whether only the assistant's last message counts.
            compares_answers: Whether completions are answers that are compared, so that no other
                token may count.
            system_prompt: System message of every conversation; None keeps their own.

        Raises:
            ConfigError: The tokenizer has no chat template, or one without system messages where
                there is a system prompt.
        """
        if not tokenizer.chat_template:
            raise ConfigError(
                f"Messages cannot be rendered: the tokenizer of '{name}' in model has no chat "
                "template. Name a Jinja file in training.chat_template_path, choose a chat model, "
                "or give the examples as prompt and completion texts."
            )
        self._tokenizer = tokenizer
        self._columns = tuple(columns)
        self._counts_prompts = counts_prompts
        self._assistant_only = assistant_only
        self._name = name
        self._marked_template = _marked_template(tokenizer) if assistant_only else None
        self._wants_content_parts = wants_content_parts(tokenizer)
        self._last_turn_only = last_turn_only
        self._compares_answers = compares_answers
        self._system_prompt = system_prompt
        if system_prompt is not None:
            self._require_system_messages(system_prompt)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> list[CountedIds]:
        """Return the ids of conversations and which of them count.

        Raises:
            MalformedConversationError: One is not a conversation; see `check_conversations`.
            ConfigError: The template gives no way to identify the assistant's tokens.
            DataError: The template refuses a conversation; the message has its reason.
        """
        talks = [self._conversation(example) for example in examples]
        try:
            return [
                self._count(talk, rendered)
                for talk, rendered in zip(talks, self._render(talks), strict=True)
            ]
        except LorakitError:
            raise
        except TEMPLATE_ERRORS as error:
            if len(examples) > 1:  # find the one
                return [made for example in examples for made in self([example])]
            raise DataError(
                f"The chat template of '{self._name}' refuses a conversation in "
                f"{describe_columns(self._columns)} that starts with {talks[0].messages[0]}: "
                f"{error}. Repair or remove it."
            ) from error

    def _conversation(self, example: Mapping[str, Any]) -> Conversation:
        talk = parse_conversation(example, *self._columns)
        if self._counts_prompts:
            talk = replace(talk, prompt_turns=0)
        if self._system_prompt is not None:
            talk = with_system_prompt(talk, self._system_prompt)
        if self._last_turn_only:
            turns = [turn for turn, m in enumerate(talk.messages) if m["role"] == "assistant"]
            talk = replace(talk, prompt_turns=max(talk.prompt_turns, turns[-1]))
        if self._wants_content_parts:
            talk = replace(talk, messages=with_content_parts(talk.messages))
        return talk

    def _require_system_messages(self, text: str) -> None:
        """Refuse a template that raises for a system message, or leaves it out."""
        try:
            is_left_out = leaves_out_system(self._tokenizer, text)
        except TEMPLATE_ERRORS as error:
            raise ConfigError(_NO_SYSTEM.format(name=self._name, why=f": {error}")) from error
        if is_left_out:
            raise ConfigError(_NO_SYSTEM.format(name=self._name, why=""))

    def _render(self, talks: Sequence[Conversation]) -> list[_Rendered]:
        """Render all beginnings of conversations that are needed to count their tokens.

        Those that differ in their messages alone are rendered and tokenized at once.
        """
        made = [_Rendered() for _ in talks]
        alike: dict[tuple[str, _Kind], list[tuple[int, int]]] = {}
        for number, talk in enumerate(talks):
            for end, kind in self._list_beginnings(talk):
                alike.setdefault((repr(talk.options), kind), []).append((number, end))
        for (_, kind), members in alike.items():
            options = dict(talks[members[0][0]].options)
            if self._marked_template is not None:
                options["chat_template"] = self._marked_template
            if kind is _Kind.MARKED:
                options["return_assistant_tokens_mask"] = True
            columns = many_chat_columns(
                self._tokenizer,
                [talks[number].messages[:end] for number, end in members],
                add_generation_prompt=kind is _Kind.ASKED,
                **options,
            )
            for at, (number, end) in enumerate(members):
                made[number].ids[end, kind is _Kind.ASKED] = columns["input_ids"][at]
                if kind is _Kind.MARKED:
                    made[number].marks = list(map(bool, columns["assistant_masks"][at]))
        return made

    def _list_beginnings(self, talk: Conversation) -> dict[tuple[int, _Kind], None]:
        """Return which beginnings are rendered: the number of messages of each, and how."""
        count = len(talk.messages)
        is_marked = self._marked_template is not None
        needed = [(count, _Kind.MARKED if is_marked else _Kind.PLAIN)]
        if self._assistant_only and not is_marked:
            for turn in self._counted_turns(talk):
                needed += [(turn, _Kind.ASKED), (turn + 1, _Kind.PLAIN)]
        else:
            if talk.prompt_turns:
                needed.append((talk.prompt_turns, _Kind.PLAIN))
                if talk.messages[talk.prompt_turns]["role"] == "assistant":
                    needed.append((talk.prompt_turns, _Kind.ASKED))
            for turn in self._masked_turns(talk):
                needed += [(end, _Kind.PLAIN) for end in (turn, turn + 1) if end]
        if is_marked:
            needed = [one for one in needed if one != (count, _Kind.PLAIN)]
        return dict.fromkeys(needed)

    def _counted_turns(self, talk: Conversation) -> list[int]:
        """Return the assistant's messages that count."""
        return [
            turn
            for turn, message in enumerate(talk.messages)
            if message["role"] == "assistant"
            and turn >= max(talk.prompt_turns, 1)
            and turn not in talk.untrained
        ]

    def _masked_turns(self, talk: Conversation) -> list[int]:
        """Return the messages after the prompt that do not count."""
        if not talk.untrained:
            return []
        return sorted(turn for turn in talk.untrained if turn >= talk.prompt_turns)

    def _count(self, talk: Conversation, rendered: _Rendered) -> CountedIds:
        whole = rendered.ids[len(talk.messages), False]
        if not self._assistant_only:
            return self._mask_untrained(talk, rendered, CountedIds(whole, [True] * len(whole)))
        if self._marked_template is not None:
            return self._mask_untrained(talk, rendered, CountedIds(whole, rendered.marks))
        counted = [False] * len(whole)
        for turn in self._counted_turns(talk):
            before, until = rendered.ids[turn, True], rendered.ids[turn + 1, False]
            if whole[: len(before)] != before or whole[: len(until)] != until:
                otherwise = "" if self._compares_answers else _COUNT_ALL
                raise ConfigError(_CANNOT_COUNT.format(name=self._name, otherwise=otherwise))
            counted[len(before) : len(until)] = [True] * (len(until) - len(before))
        return CountedIds(whole, counted)

    def _mask_untrained(
        self, talk: Conversation, rendered: _Rendered, made: CountedIds
    ) -> CountedIds:
        """Do not count the tokens of the prompt and of messages of weight 0."""
        if not talk.prompt_turns and not talk.untrained:
            return made
        start = self._prompt_length(talk, rendered, made.ids) if talk.prompt_turns else 0
        counted = [c and position >= start for position, c in enumerate(made.counted)]
        for turn in self._masked_turns(talk):
            before = rendered.ids[turn, False] if turn else []
            until = rendered.ids[turn + 1, False]
            if made.ids[: len(before)] != before or made.ids[: len(until)] != until:
                raise ConfigError(_CANNOT_LEAVE_OUT.format(name=self._name))
            counted[len(before) : len(until)] = [False] * (len(until) - len(before))
        return CountedIds(made.ids, counted)

    def _prompt_length(self, talk: Conversation, rendered: _Rendered, whole: Sequence[int]) -> int:
        """Return the number of ids before the completion, its first turn's opening included."""
        alone = rendered.ids[talk.prompt_turns, False]
        if list(whole[: len(alone)]) != alone:
            problem = _LAST_CHANGES if self._last_turn_only else _PROMPT_CHANGES
            otherwise = "" if self._compares_answers else _COUNT_PROMPTS
            raise ConfigError(problem.format(name=self._name, otherwise=otherwise))
        if talk.messages[talk.prompt_turns]["role"] != "assistant":
            return len(alone)
        return common_prefix_length(rendered.ids[talk.prompt_turns, True], whole)


def _marked_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a template that marks the assistant's tokens and end-of-turn token, if any."""
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    template = tokenizer.chat_template
    given: str = template["default"] if isinstance(template, dict) else template
    try:
        candidate = get_training_chat_template(tokenizer)
    except (ValueError, TemplateError):
        candidate = None
    if candidate is None and has_generation_markers(given):
        candidate = given
    if candidate is None or not is_chat_template_stop_token_trained(tokenizer, candidate):
        return None
    return candidate


def with_content_parts(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose content is a list of one text part.

    >>> with_content_parts([{"role": "user", "content": "hi"}])
    [{'role': 'user', 'content': [{'type': 'text', 'text': 'hi'}]}]
    """
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def leaves_out_system(tokenizer: PreTrainedTokenizerBase, text: str = "probe") -> bool:
    """Return whether a chat template renders no system message; one that refuses it raises.

    Args:
        tokenizer: A tokenizer with a chat template.
        text: A system message.
    """
    rendered = set[str]()
    for system in (text, f"{text} probe"):
        talk = [{"role": "system", "content": system}, {"role": "user", "content": "probe"}]
        given = with_content_parts(talk) if wants_content_parts(tokenizer) else talk
        rendered.add(render_chat(tokenizer, given))
    return len(rendered) == 1


def wants_content_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a chat template renders only content parts, as some of image models do."""
    probe = [{"role": "user", "content": "probe"}]
    is_rendered = []
    for messages in (probe, with_content_parts(probe)):
        try:
            is_rendered.append("probe" in render_chat(tokenizer, messages))
        except TEMPLATE_ERRORS:
            is_rendered.append(False)
    return is_rendered == [False, True]


def read_template(path: str) -> str:
    """Read a chat template from a Jinja file.

    Raises:
        MissingFileError: The file does not exist.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(
            f"No chat template in training.chat_template_path: got '{path}', expected a Jinja file "
            "that exists. Check the path; it is relative to the current directory."
        )
    return file.read_text(encoding="utf-8")
