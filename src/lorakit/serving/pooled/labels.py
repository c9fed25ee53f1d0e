"""From logits to labels: the class of a text, and the spans of a text that carry a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lorakit.adapters.inference_settings import InferenceSettings

OUTSIDE = "O"
"""The label of a word that belongs to no span."""


@dataclass(frozen=True)
class TextLabel:
    """The label of a text.

    Attributes:
        label: The likeliest label; for numbers, these as text.
        probabilities: Probability of every label, in the order of the head; empty for numbers.
        chosen: The labels above their thresholds, if a text may have several; else None.
        values: The numbers by name, if numbers are predicted; else None.
    """

    label: str
    probabilities: dict[str, float]
    chosen: tuple[str, ...] | None = None
    values: dict[str, float] | None = None


@dataclass(frozen=True)
class Word:
    """A word, and where it stands in its text (both None for a list of words)."""

    text: str
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class LabelledWord:
    """A word with its likeliest label and the label's probability."""

    word: Word
    label: str
    probability: float


@dataclass(frozen=True)
class Span:
    """Words in a row that carry one label, without the scheme's B- and I-.

    Attributes:
        label: The label.
        first: Index of the first word.
        last: Index of the last word.
        probability: The lowest probability of its words.
    """

    label: str
    first: int
    last: int
    probability: float


def text_label(logits: Tensor, labels: Sequence[str], settings: InferenceSettings) -> TextLabel:
    """Return the label of a text, or its labels or numbers.

    Args:
        logits: (labels,).
        labels: Names of the labels.
        settings: Settings of the adapter, with its problem type and thresholds.
    """
    from lorakit.inference.prediction import LabelSet, Numbers, text_outputs  # imports torch

    (found,) = text_outputs(logits[None], labels, settings)
    if isinstance(found, Numbers):
        text = ", ".join(f"{value:.6g}" for value in found.values.values())
        return TextLabel(text, {}, values=found.values)
    probabilities = found.probabilities
    best = max(probabilities, key=lambda one: probabilities[one])
    chosen = found.labels if isinstance(found, LabelSet) else None
    return TextLabel(best, probabilities, chosen)


def label_words(
    logits: Tensor, word_of: Sequence[int | None], words: Sequence[Word], labels: Sequence[str]
) -> list[LabelledWord]:
    """Return the label of each word, which is that of its first token.

    Args:
        logits: (tokens, labels).
        word_of: Index of the word of each token, None for special tokens.
        words: The words, all of which have a token.
        labels: Names of the labels.
    """
    best = logits.softmax(-1).max(-1)
    first: dict[int, int] = {}
    for position, word in enumerate(word_of):
        if word is not None:
            first.setdefault(word, position)
    return [
        LabelledWord(words[word], labels[int(best.indices[at])], float(best.values[at]))
        for word, at in sorted(first.items())
    ]


def spans(words: Sequence[LabelledWord]) -> list[Span]:
    """Return the spans of labelled words.

    With the labels B-x and I-x, B- begins a span; other labels form one as long as they repeat.
    """
    found: list[Span] = []
    for index, each in enumerate(words):
        if each.label == OUTSIDE:
            continue
        prefix, label = _without_prefix(each.label)
        last = found[-1] if found and found[-1].last == index - 1 else None
        if last is not None and last.label == label and prefix != "B":
            probability = min(last.probability, each.probability)
            found[-1] = Span(label, last.first, index, probability)
        else:
            found.append(Span(label, index, index, each.probability))
    return found


def _without_prefix(label: str) -> tuple[str, str]:
    prefix, dash, rest = label.partition("-")
    return (prefix, rest) if dash and prefix in ("B", "I") and rest else ("", label)
