"""Sections of a run's report about its verdict and its examples."""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.analysis.verdict import Comparison, Forgetting, Verdict
from lorakit.training.markdown_text import number, plain, table, text_table
from lorakit.training.verdict.shown_examples import ShownExample, ShownExamples

_MOST_CHARACTERS = 300
_MISTAKES = {
    "confident mistakes": (
        "### The most confident mistakes",
        "Often it is the label that is wrong. `lorakit blame RUN --mistakes` shows the training "
        "examples behind them.",
    ),
    "wrong labels": ("### The most confident mistakes", "Often it is the label that is wrong."),
    "unlikely answers": (
        "### The least likely answers",
        "Expected answers that the adapter finds least likely, by the probability of a token. "
        "Some may be wrong in the data.",
    ),
    "errors": ("### The largest errors", "Often it is the number in the data that is wrong."),
}


def verdict_section(verdict: Verdict | None, wall_s: float | None) -> tuple[str, ...]:
    """Return the numbers behind the verdict, and how they were measured.

    Args:
        verdict: The verdict; None if none was asked for.
        wall_s: Seconds that the comparison took.
    """
    if verdict is None:
        return ()
    parts = ["## Is it better?"]
    compared = () if verdict.comparison is None else (verdict.comparison, *verdict.further)
    rows = [_comparison_row(one) for one in compared]
    if verdict.forgetting is not None:
        rows.append(_forgetting_row(verdict.forgetting))
    if verdict.divergence is not None:
        name = "KL divergence from the reference, per token"
        rows.append((name, "0", number(verdict.divergence), "", "", "expected answers"))
    if rows:
        before = "base" if verdict.comparison is None else verdict.comparison.baseline
        parts.append(table(("", before, "adapter", "difference", "95% interval", "on"), rows))
    notes = [*map(plain, verdict.notes), *_meaning(verdict)]
    if wall_s is not None:
        notes.append(f"The comparison took {wall_s:.1f} s (`evaluation.compare_with_base`).")
    parts.append("\n".join(f"- {note}" for note in notes))
    return tuple(parts)


def _comparison_row(found: Comparison) -> tuple[str, ...]:
    change = found.change
    return (
        found.metric,
        number(found.before),
        number(found.after),
        f"{change.value:+,.1f} {found.unit}",
        f"{change.low:+,.1f} to {change.high:+,.1f}",
        f"{found.examples:,} examples",
    )


def _forgetting_row(found: Forgetting) -> tuple[str, ...]:
    rise = found.rise
    return (
        "perplexity of neutral text",
        number(found.before),
        number(found.after),
        f"{rise.value:+,.1f} %",
        f"{rise.low:+,.1f} to {rise.high:+,.1f}",
        f"{found.texts} passages, {found.tokens:,} tokens",
    )


def _meaning(verdict: Verdict) -> list[str]:
    notes = []
    if verdict.comparison is not None:
        notes.append(
            "The interval is a paired bootstrap over the validation examples: it says what other "
            "examples of this kind would change, not what another seed would. Choosing the best "
            "checkpoint on the same examples favours the adapter a little; `lorakit evaluate RUN "
            "--data FILE --base` compares on examples that nothing was chosen by."
        )
        if verdict.forgetting is None:
            notes.append(
                "What is forgotten is measured for CAUSAL_LM: an adapter of another task gives "
                "no other answers."
            )
    if verdict.forgetting is not None:
        notes.append("Neutral text comes with lorakit: short passages on everyday matters.")
    return notes


def example_sections(shown: ShownExamples) -> tuple[str, ...]:
    """Return the tables of the most confident mistakes and of random examples."""
    parts: list[str] = []
    if shown.mistakes:
        parts += [*_MISTAKES[shown.kind], _examples_table(shown.mistakes)]
    if shown.random:
        parts += ["### Random examples", _examples_table(shown.random)]
    return tuple(parts)


def _examples_table(examples: Sequence[ShownExample]) -> str:
    columns = [("input", [one.given for one in examples])]
    if any(one.place for one in examples):
        columns.insert(0, ("", [one.place for one in examples]))
    columns.append(("expected", [one.expected for one in examples]))
    for name, values in (
        ("adapter", [one.adapter for one in examples]),
        ("base", [one.base for one in examples]),
    ):
        if any(value is not None for value in values):
            columns.append((name, ["" if value is None else value for value in values]))
    if any(one.confidence is not None for one in examples):
        shares = [None if one.confidence is None else one.confidence for one in examples]
        columns.append(("probability", ["" if p is None else f"{p:.1%}" for p in shares]))
    rows = zip(*(map(_shorten, values) for _, values in columns), strict=True)
    return text_table([name for name, _ in columns], list(rows))


def _shorten(text: str) -> str:
    """Return a text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 2] + " …"
