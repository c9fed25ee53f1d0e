"""Sections of a run's report about its verdict and its examples."""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.analysis.paired_bootstrap import Interval
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
    sizes = _sizes(found.before, found.after, found.change, found.unit)
    return (found.metric, *sizes, f"{found.examples:,} examples")


def _forgetting_row(found: Forgetting) -> tuple[str, ...]:
    sizes = _sizes(found.before, found.after, found.rise, "%")
    return (
        "perplexity of neutral text",
        *sizes,
        f"{found.texts} passages, {found.tokens:,} tokens",
    )


def _sizes(before: float, after: float, change: Interval, unit: str) -> tuple[str, ...]:
    interval = f"{change.low:+,.1f} to {change.high:+,.1f}"
    return (number(before), number(after), f"{change.value:+,.1f} {unit}", interval)


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
    shares = [None if one.confidence is None else f"{one.confidence:.1%}" for one in examples]
    columns: list[tuple[str, list[str | None]]] = [
        ("", [one.place or None for one in examples]),
        ("input", [one.given for one in examples]),
        ("expected", [one.expected for one in examples]),
        ("adapter", [one.adapter for one in examples]),
        ("base", [one.base for one in examples]),
        ("probability", shares),
    ]
    known = [(name, some) for name, some in columns if any(one is not None for one in some)]
    rows = zip(*([_shorten(one or "") for one in some] for _, some in known), strict=True)
    return text_table([name for name, _ in known], list(rows))


def _shorten(text: str) -> str:
    """Return a text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 2] + " …"
