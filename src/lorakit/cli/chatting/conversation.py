"""A conversation: questions with their answers, and the file it is saved to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from lorakit.errors import DataError
from lorakit.files.atomic import write_text
from lorakit.files.disks import disk_error


@dataclass(frozen=True)
class Exchange:
    """A question, the answer to it, and that of the base if it was asked too."""

    question: str
    answer: str
    base_answer: str | None = None


@dataclass
class Conversation:
    """A conversation.

    Attributes:
        system: The system message, if there is one.
        exchanges: What was asked and answered so far.
        has_history: Whether the model sees earlier exchanges; otherwise each is by itself.
    """

    system: str | None = None
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    has_history: bool = True
    _saved: dict[Path, str] = field(default_factory=dict[Path, str])

    def messages(self, question: str, *, of_base: bool = False) -> list[dict[str, str]]:
        """Return the messages that end in a question.

        Args:
            question: What is asked now.
            of_base: Whether earlier answers are those of the base, where it was asked.
        """
        if not self.has_history:
            return [_message("user", question)]
        return [*self._messages(self.exchanges, of_base=of_base), _message("user", question)]

    def clear(self) -> None:
        """Begin a new conversation with the same system message."""
        self.exchanges.clear()
        self._saved.clear()

    def save(self, file: Path) -> int:
        """Add the conversation to a file of training examples, one JSON object per line.

        If it was saved there before, its lines are replaced.

        Returns: The number of lines of the file.

        Raises:
            DataError: There is nothing to save, or the file holds something else.
            DiskError: The file cannot be written.
        """
        if not self.exchanges:
            raise DataError(
                "Nothing to save: got a conversation without an answer, expected one. Ask first."
            )
        place = file.absolute()
        try:
            before = place.read_text(encoding="utf-8") if place.exists() else ""
            before = before.removesuffix(self._saved.get(place, ""))
            _require_examples(before, file)
            lines = "".join(f"{line}\n" for line in self._examples())
            write_text(place, before + lines)
        except UnicodeDecodeError:
            raise _not_examples(file) from None
        except OSError as error:
            raise disk_error(error, place) or DataError(
                f"Cannot save to {file}: {error.strerror}. Name another file."
            ) from error
        self._saved[place] = lines
        return (before + lines).count("\n")

    def _examples(self) -> list[str]:
        """Return the conversation as one example, or each exchange as one if there is no history.

        The system message is part of an example only if the model saw it.
        """
        parts = [self.exchanges] if self.has_history else [[each] for each in self.exchanges]
        examples = [{"messages": self._messages(part)} for part in parts]
        return [json.dumps(example, ensure_ascii=False) for example in examples]

    def _messages(
        self, exchanges: list[Exchange], *, of_base: bool = False
    ) -> list[dict[str, str]]:
        shows_system = self.system is not None and self.has_history
        messages = [_message("system", self.system or "")] if shows_system else []
        for each in exchanges:
            shown = each.base_answer if of_base and each.base_answer is not None else each.answer
            messages += [_message("user", each.question), _message("assistant", shown)]
        return messages


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _require_examples(text: str, file: Path) -> None:
    """Refuse to add to a file whose last line is not a conversation."""
    if not text:
        return
    try:
        last = json.loads(text.removesuffix("\n").rpartition("\n")[2])
    except ValueError:
        last = None
    if not text.endswith("\n") or not isinstance(last, dict) or "messages" not in last:
        raise _not_examples(file)


def _not_examples(file: Path) -> DataError:
    return DataError(
        f"Cannot add the conversation to {file}: got a file that ends in something else, expected "
        'lines such as {"messages": [...]}. Name another file.'
    )
