"""Guesses that read no input: what an adapter is compared with where the base cannot answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorakit.analysis.example_scores import (
    ExampleScores,
    scores_of_classes,
    scores_of_label_sets,
    scores_of_numbers,
    scores_of_tags,
)
from lorakit.config import NOT_COUNTED

_NO_HEAD = "The base has no trained head, so the adapter is compared with "


@dataclass(frozen=True)
class Guess:
    """One guess for every example, and how good it is."""

    scores: tuple[ExampleScores, ...]
    """Scores of the examples by each metric of the comparison."""
    baseline: str
    """The guess in words: "guessing the commonest class"."""
    note: str
    """Why and what is guessed, in a sentence."""
    knows_examples: bool = True
    """Whether it is made from known examples; chance needs none."""


def guess_class(known: Iterable[int], expected: Any, labels: Sequence[str]) -> Guess:
    """Guess the commonest class.

    Args:
        known: Class ids that the guess is made from.
        expected: Class ids of the examples, (examples,).
        labels: Class names by id.
    """
    best = commonest(known)
    guessed = np.full_like(np.asarray(expected), best)
    note = f"{_NO_HEAD}guessing the commonest class ('{labels[best]}') every time."
    return Guess((scores_of_classes(expected, guessed),), "guessing the commonest class", note)


def guess_tag(
    known: Iterable[Sequence[int]], expected: Sequence[Sequence[int]], labels: Sequence[str]
) -> Guess:
    """Guess the commonest tag for every word.

    Args:
        known: Tag ids of the examples that the guess is made from, -100 where none counts.
        expected: Tag ids of each example, of any length.
        labels: Tag names by id.
    """
    best = commonest(tag for tags in known for tag in tags if tag != NOT_COUNTED)
    longest = max(map(len, expected))
    padded = np.full((len(expected), longest), NOT_COUNTED)
    for row, tags in zip(padded, expected, strict=True):
        row[: len(tags)] = tags
    scores = scores_of_tags(padded, np.full_like(padded, best), labels)
    note = f"{_NO_HEAD}guessing the commonest tag ('{labels[best]}') every time."
    return Guess((scores,), "guessing the commonest tag", note)


def guess_label_set(known: Any, expected: Any, labels: Sequence[str]) -> Guess:
    """Guess the same labels for every text: those with the best micro F1 on what is known.

    Args:
        known: 1 where an example has a label, else 0, (examples, labels).
        expected: The same for the examples to guess.
        labels: Label names.
    """
    truth = np.asarray(known)
    counts = truth.sum(0)
    order = np.argsort(-counts, kind="stable")
    taken = np.arange(1, len(order) + 1)
    f1 = 2 * np.cumsum(counts[order]) / (len(truth) * taken + counts.sum())
    best = np.sort(order[: int(f1.argmax()) + 1])
    guessed = np.zeros_like(np.asarray(expected))
    guessed[:, best] = 1
    names = ", ".join(f"'{labels[at]}'" for at in best)
    note = (
        f"{_NO_HEAD}guessing the commonest labels ({names}) for every text, the fixed set with the "
        "best micro F1."
    )
    return Guess(scores_of_label_sets(expected, guessed), "guessing the commonest labels", note)


def guess_numbers(known: Any, expected: Any, names: Sequence[str]) -> Guess:
    """Guess the mean of what is known.

    Args:
        known: Numbers of the examples that the guess is made from, (examples,) or
            (examples, numbers).
        expected: Numbers of the examples to guess.
        names: Names of the numbers.
    """
    truth = np.asarray(expected, np.float64)
    mean = np.asarray(known, np.float64).mean(0)
    each = ", ".join(f"{number:.4g}" for number in mean.reshape(-1))
    note = (
        "The base has no trained head, so its numbers would be noise: the adapter is compared with "
        f"predicting the mean of {' and '.join(names)} ({each}) every time."
    )
    scores = scores_of_numbers(truth, np.broadcast_to(mean, truth.shape))
    return Guess(scores, "predicting the mean", note)


def guess_answer(pairs: int) -> Guess:
    """Guess which answer of each pair is the chosen one: half of the time this is right."""
    note = f"{_NO_HEAD}chance, which ranks half of the pairs correctly."
    scores = ExampleScores("accuracy", np.full(pairs, 0.5), np.ones(pairs))
    return Guess((scores,), "chance", note, knows_examples=False)


def guess_vote(known: Iterable[int], expected: Any) -> Guess:
    """Guess the commonest vote.

    Args:
        known: Votes that the guess is made from, 1 or 0.
        expected: Votes of the examples, (examples,).
    """
    best = commonest(known)
    guessed = np.full_like(np.asarray(expected), best)
    note = (
        "A vote is predicted from the difference to the base, which the base does not have, so the "
        f"adapter is compared with guessing the commonest vote ({'good' if best else 'bad'}) every "
        "time."
    )
    return Guess((scores_of_classes(expected, guessed),), "guessing the commonest vote", note)


def commonest(ids: Iterable[int]) -> int:
    """Return the most frequent id; the lower one of two.

    >>> commonest([2, 1, 2, 1, 0])
    1
    """
    counts = Counter(ids)
    return min(counts, key=lambda one: (-counts[one], one))
