"""Print what adapters answer to texts: new text, labels or tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from lorakit.cli.views.console import say, table
from lorakit.errors import DataError

SHOWN_CHARACTERS = 60
OUTSIDE = "O"  # the tag of a word that belongs to no entity


class Label(Protocol):
    """A label with its probability."""

    @property
    def label(self) -> str:
        """The label."""
        ...

    @property
    def probability(self) -> float | None:
        """Its probability; None where there is none."""
        ...


class ShownLabel(NamedTuple):
    """A label as it is shown, or several, or numbers."""

    label: str
    probability: float | None = None


class TaggedWord(Protocol):
    """A word with its tag and the tag's probability."""

    @property
    def word(self) -> str:
        """The word."""
        ...

    @property
    def tag(self) -> str:
        """Its tag."""
        ...

    @property
    def probability(self) -> float:
        """The tag's probability."""
        ...


def print_texts(prompts: Sequence[str], answers: Mapping[str, Sequence[str]]) -> None:
    """Print generated texts; nothing else for one prompt and one model.

    Args:
        prompts: The prompts.
        answers: The answers to them, by the name of the model.
    """
    if len(prompts) == len(answers) == 1:
        say(next(iter(answers.values()))[0])
        return
    for number, prompt in enumerate(prompts):
        say(f"{'' if number == 0 else chr(10)}> {prompt}", style="bold")
        for name, texts in answers.items():
            if len(answers) > 1:
                say(f"[{name}]", style="dim")
            say(texts[number])


def print_labels(prompts: Sequence[str], found: Sequence[Sequence[Label]]) -> None:
    """Print a table with each text's label and its probability.

    Args:
        prompts: The texts.
        found: Their labels by the adapter and, if it was asked too, by the base alone.
    """
    columns = ["label", "probability", "text"]
    if len(found) > 1:
        columns = ["label", "probability", "base alone", "probability", "text"]
    rows = []
    for number, prompt in enumerate(prompts):
        cells: list[str] = []
        for labels in found:
            probability = labels[number].probability
            shown = "" if probability is None else f"{100 * probability:.1f}%"
            cells += [labels[number].label, shown]
        rows.append((*cells, shorten(prompt)))
    table(columns, rows)


def print_tags(answers: Mapping[str, Sequence[Sequence[TaggedWord]]]) -> None:
    """Print each text with its words' tags, and the tagged words' probabilities.

    Args:
        answers: The tagged words of each text, by the name of the model; for a single model there
            are probabilities too.
    """
    for number in range(len(next(iter(answers.values())))):
        if number:
            say()
        for name, texts in answers.items():
            words = texts[number]
            line = " ".join(w.word if w.tag == OUTSIDE else f"{w.word}/{w.tag}" for w in words)
            say(f"{name}: {line}" if len(answers) > 1 else line)
            if len(answers) == 1:
                tagged = [w for w in words if w.tag != OUTSIDE]
                rows = [(w.word, w.tag, f"{100 * w.probability:.1f}%") for w in tagged]
                if rows:
                    table(("word", "tag", "probability"), rows)


def pairs_of(prompts: Sequence[str]) -> list[str | tuple[str, str]]:
    """Split texts at their tab, for an adapter trained on pairs.

    Raises:
        DataError: A text has no tab.
    """
    pairs: list[str | tuple[str, str]] = []
    for number, prompt in enumerate(prompts, start=1):
        first, tab, second = prompt.partition("\t")
        if not tab:
            raise DataError(
                f"Text {number} is not a pair: got {shorten(prompt)!r}, expected two texts with a "
                "tab between them, because this adapter was trained on pairs. Add the second text."
            )
        pairs.append((first, second))
    return pairs


def shorten(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """Return the beginning of a text on one line.

    >>> shorten("one two  three", most=11)
    'one two ...'
    """
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 4].rstrip() + " ..."
