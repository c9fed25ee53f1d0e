"""What one can ask of served models, wherever they run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lorakit.errors import ConfigError, did_you_mean, first_few

Message = Mapping[str, str]
"""A message of a conversation: `role` and `content`."""

Form = Literal["conversation", "instruction", "text"]
"""What a model takes: a conversation in a chat template, a single instruction in the format of
alpaca examples, or a text that it continues."""

_FORMS: Mapping[str | None, Form] = {
    "text": "text",
    "prompt_completion": "text",
    "alpaca": "instruction",
    "messages": "conversation",
}


def form_of(training_format: str | None, *, has_template: bool = True) -> Form:
    """Return what a model takes.

    Args:
        training_format: Layout of its training examples, if it is known.
        has_template: Whether its tokenizer has a chat template.

    >>> form_of("prompt_completion"), form_of(None), form_of(None, has_template=False)
    ('text', 'conversation', 'text')
    """
    return _FORMS.get(training_format, "conversation" if has_template else "text")


def last_question(messages: Sequence[Message]) -> str:
    """Return what the user wrote last."""
    return next(each["content"] for each in reversed(messages) if each["role"] == "user")


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are generated.

    Attributes:
        max_new_tokens: Maximum length of an answer; None for a default.
        temperature: 0 takes the likeliest token each time.
        top_p: Sample from the likeliest tokens that have this probability together.
        seed: Seed of the sampling.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42


@dataclass(frozen=True)
class End:
    """The end of an answer.

    Attributes:
        reason: "stop" if the model ended it, "length" if it was cut.
    """

    reason: str


@dataclass(frozen=True)
class Listed:
    """A model that can be asked.

    Attributes:
        name: Its name.
        is_base: Whether it is a base alone.
        task: What it was trained for, if that is known.
        problem: Why it cannot be used, or None.
    """

    name: str
    is_base: bool
    task: str | None = None
    problem: str | None = None


class TalkingModels(Protocol):
    """Models that answer conversations."""

    async def list_models(self) -> Sequence[Listed]:
        """Return the base and all adapters."""
        ...

    async def form(self, name: str) -> Form:
        """Return what a model takes, as far as is known before it is asked."""
        ...

    def answer(
        self, name: str, messages: Sequence[Message], options: AnswerOptions, *, form_like: str
    ) -> AsyncIterator[str | End]:
        """Yield the pieces of the answer to a conversation, and its end.

        Args:
            name: The model.
            messages: The conversation; a model for single texts gets what the user wrote last.
            options: Sampling.
            form_like: The model whose form is used: an adapter beside which the base is shown.

        Raises:
            LorakitError: There is no answer.
        """
        ...

    async def close(self) -> None:
        """End connections and threads."""
        ...


def find_listed(listed: Sequence[Listed], name: str) -> Listed:
    """Return the model of a name.

    Raises:
        ConfigError: There is none, or it cannot be used.
    """
    for each in listed:
        if each.name == name:
            if each.problem is not None:
                raise ConfigError(f"The adapter '{name}' cannot be used: {each.problem}")
            return each
    names = [each.name for each in listed]
    raise ConfigError(
        f"No model '{name}': expected one of {first_few(names, most=8) or 'none'}."
        f"{did_you_mean(name, names)}"
    )
