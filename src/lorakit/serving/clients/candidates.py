"""Who is asked beside whom, what they are asked, and what they may say; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorakit.config import TaskType
from lorakit.serving.clients.talking import End, Form, Message
from lorakit.serving.pooled.labels import LabelledWord, TextLabel

MOST_ADAPTERS = 3


@dataclass(frozen=True)
class Wanted:
    """What to have in memory.

    Attributes:
        base: The base; None is that of the adapters.
        adapters: Directories of runs or adapters by the name to show.
        unquantized: Whether to load the base as it is saved, even if training quantized it.
    """

    base: str | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict[str, Path])
    unquantized: bool = False


@dataclass(frozen=True)
class Candidate:
    """The base alone or an adapter, and what it does with a text.

    Attributes:
        name: Its name.
        is_base: Whether it is the base alone.
        task: What it is for.
        form: What it takes, if it chats.
        labels: Its labels, if it has any.
        takes_pairs: Whether it takes two texts.
    """

    name: str
    is_base: bool
    task: TaskType
    form: Form | None = None
    labels: tuple[str, ...] = ()
    takes_pairs: bool = False


@dataclass(frozen=True)
class Question:
    """What all candidates are asked.

    Attributes:
        text: The text.
        second: The second text of a pair.
        system: The system message of a chat.
    """

    text: str
    second: str = ""
    system: str = ""

    @property
    def messages(self) -> list[Message]:
        """The question as a conversation."""
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return [*system, {"role": "user", "content": self.text}]

    def prompt_for(self, candidate: Candidate) -> str | list[Message]:
        """Return what a candidate reads: messages, or a text."""
        if candidate.form == "conversation":
            return self.messages
        from lorakit.data.text_formats import alpaca_prompt  # imports transformers

        return alpaca_prompt(self.text) if candidate.form == "instruction" else self.text


@dataclass(frozen=True)
class Words:
    """The words of a text with their labels."""

    words: tuple[LabelledWord, ...]


Piece = str | End | TextLabel | Words
"""A piece of a written answer, its end, or what a classifier says."""
