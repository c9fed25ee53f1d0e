"""Which training examples are behind an answer of a run, or behind its mistakes, as plain texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.runs.warm_process import say

if TYPE_CHECKING:
    from lorakit.training.setup import Setup

_MOST_CHARACTERS = 300
"""Characters of a column that are kept."""


@dataclass(frozen=True)
class BlamedExample:
    """A training example and its influence."""

    influence: float
    """Share of all influences; above 0 it made the answer likelier, or the mistakes worse."""
    place: str
    """Its file and line, or its number where there are no lines."""
    values: tuple[str, ...]
    """Its columns."""


@dataclass(frozen=True)
class BlameAnswer:
    """The result of `blame_of`: what `lorakit blame` prints, without its libraries' types."""

    heading: str
    notes: tuple[str, ...]
    """What was asked, and what else one should know; the first begins with what was looked at."""
    columns: tuple[str, ...]
    examples: tuple[BlamedExample, ...]
    """Those that made the answer likeliest, or the mistakes worst, first."""


def blame_of(
    run: Path,
    answer: str | None = None,
    *,
    prompt: str | None = None,
    label: str | None = None,
    top: int = 20,
) -> BlameAnswer:
    """Rank the training examples of a run by their influence on an answer or on its mistakes.

    Args:
        run: The run directory.
        answer: An answer, or a text that is classified; None asks about the mistakes.
        prompt: What the answer answers, where examples have prompts.
        label: Label of a text; None takes what the adapter predicts.
        top: Number of examples to return.

    Raises:
        MissingFileError, ConfigError, DataError: As `lorakit.training.influence.blame` raises.
    """
    from lorakit.training.influence import blame

    words = "Reading the run and its examples"

    def check(setup: Setup) -> None:
        nonlocal words
        words = f"Computing the gradients of {len(setup.splits.train):,} training examples"
        say(words)

    say(words)
    found = blame(
        *(run, answer),
        prompt=prompt,
        label=label,
        check=check,
        on_share=lambda share: say(words, share),
    )
    rows = found.rows[:top]
    columns = tuple(rows[0].values) if rows else ()
    return BlameAnswer(
        heading=found.heading(top),
        notes=(found.about, *found.notes, *found.note_on_signs(top)),
        columns=columns,
        examples=tuple(
            BlamedExample(
                *(row.share, found.place(row)),
                tuple(_text_of(row.values[column]) for column in columns),
            )
            for row in rows
        ),
    )


def _text_of(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
