"""Is the adapter better than the base, and what did it forget? One sentence, and its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lorakit.analysis.example_scores import RELATIVE_METRICS, ExampleScores, Metric
from lorakit.analysis.paired_bootstrap import Interval, paired_difference

FEWEST_EXAMPLES = 20
"""With fewer examples the interval of the bootstrap is too narrow to be believed."""

Outcome = Literal["better", "worse", "not distinguishable", "too few examples"]

_MOST_PERCENT = 1_000_000
_SKEW = 1.3
"""An interval whose longer side is more than this times half its width is written with both ends.
"""


@dataclass(frozen=True)
class Comparison:
    """An adapter compared with a baseline on the same examples."""

    metric: Metric
    baseline: str
    """What it is compared with, in words: "the base"."""
    before: float
    """Score of the baseline: from 0 to 1, a perplexity, or an error in the unit of the numbers."""
    after: float
    """Score of the adapter."""
    gain: Interval
    """By how much the adapter is better: in points (hundredths), or for a relative metric in
    percent of the baseline's."""
    examples: int

    @property
    def outcome(self) -> Outcome:
        """Whether the interval of the gain is above or below zero."""
        if self.examples < FEWEST_EXAMPLES:
            return "too few examples"
        if self.gain.low > 0:
            return "better"
        return "worse" if self.gain.high < 0 else "not distinguishable"

    @property
    def change(self) -> Interval:
        """By how much the score of the adapter is higher, in `unit`."""
        return self.gain.map(lambda gain: -gain) if self._is_relative else self.gain

    @property
    def unit(self) -> str:
        """Unit of gain and change."""
        return "%" if self._is_relative else "points"

    @property
    def _is_relative(self) -> bool:
        return self.metric in RELATIVE_METRICS

    def clause(self) -> str:
        """Return the result as a sentence without its full stop."""
        unit = self.unit if self._is_relative else f" {self.unit}"
        change = self.change
        if self.outcome == "too few examples":
            return (
                f"Too few examples to tell ({self.examples}): {self.metric} "
                f"{change.value:+,.1f}{unit} against {self.baseline}"
            )
        if self.outcome == "not distinguishable":
            change_text = spread(change, sign="+")
            return f"Not distinguishable from {self.baseline}: {self.metric} {change_text}{unit}"
        size = self.gain if self.outcome == "better" else self.gain.map(lambda gain: -gain)
        return (
            f"{self.outcome.capitalize()} than {self.baseline} by {spread(size)}{unit} of "
            f"{self.metric}"
        )


@dataclass(frozen=True)
class Forgetting:
    """Perplexity of neutral text before and after training."""

    before: float
    after: float
    rise: Interval
    """Rise of the perplexity in percent."""
    texts: int
    tokens: int

    @property
    def is_measurable(self) -> bool:
        """Whether the perplexity rises by more than chance."""
        return self.rise.low > 0

    def clause(self) -> str:
        """Return what is forgotten, as the second half of a sentence."""
        if not self.is_measurable:
            return "forgets nothing measurable"
        return f"forgets {spread(self.rise)}% (perplexity of neutral text)"


@dataclass(frozen=True)
class Verdict:
    """The answer to whether an adapter is better than its base."""

    comparison: Comparison | None
    forgetting: Forgetting | None
    notes: tuple[str, ...] = ()
    """How it was measured, and what was not and why; one sentence each."""
    further: tuple[Comparison, ...] = ()
    """The same comparison by other metrics, which the sentence does not name."""
    divergence: float | None = None
    """KL divergence from the reference of an objective, in nats per token; None without one."""

    @property
    def sentence(self) -> str | None:
        """The answer in one sentence, or None if nothing was measured."""
        parts = [part.clause() for part in (self.comparison, self.forgetting) if part is not None]
        if not parts:
            return None
        text = ", ".join(parts)
        return f"{text[0].upper()}{text[1:]}."

    def facts(self) -> dict[str, Any]:
        """Return the verdict as JSON values; a perplexity that is infinite is None."""
        outcome = None if self.comparison is None else self.comparison.outcome
        return {
            "sentence": self.sentence,
            "outcome": outcome,
            "comparison": _finite(self.comparison),
            "further": [_finite(one) for one in self.further],
            "divergence": self.divergence,
            "forgetting": _finite(self.forgetting),
            "notes": list(self.notes),
        }


def _finite(part: Comparison | Forgetting | None) -> dict[str, Any] | None:
    values = {} if part is None else asdict(part)
    for name in ("before", "after"):
        if name in values and not math.isfinite(values[name]):
            values[name] = None
    return values or None


def compare(
    before: ExampleScores, after: ExampleScores, baseline: str, seed: int = 0
) -> Comparison:
    """Compare an adapter with a baseline.

    Args:
        before: Scores of the baseline.
        after: Scores of the adapter on the same examples in the same order.
        baseline: The baseline in words.
        seed: Seed of the bootstrap.
    """
    difference = paired_difference(before, after, seed)
    if after.metric in RELATIVE_METRICS:
        ends = _exponential(before.mean), _exponential(after.mean)
        gain = difference.map(lambda logarithm: -_rise(logarithm))
    else:
        ends = before.mean, after.mean
        gain = difference.map(lambda share: 100 * share)
    return Comparison(after.metric, baseline, *ends, gain, len(after))


def measure_forgetting(before: ExampleScores, after: ExampleScores, seed: int = 0) -> Forgetting:
    """Compare the losses of base and adapter on neutral texts."""
    rise = paired_difference(before, after, seed).map(_rise)
    ends = _exponential(before.mean), _exponential(after.mean)
    return Forgetting(*ends, rise, len(after), int(after.weights.sum()))


def compare_all(
    before: Sequence[ExampleScores], after: Sequence[ExampleScores], baseline: str, seed: int = 0
) -> tuple[Comparison, ...]:
    """Compare by each of several metrics; see `compare`."""
    pairs = zip(before, after, strict=True)
    return tuple(compare(one, other, baseline, seed) for one, other in pairs)


def _exponential(logarithm: float) -> float:
    """Return exp(logarithm), infinity, or 0."""
    return 0.0 if logarithm < -700 else math.exp(logarithm) if logarithm < 700 else math.inf


def _rise(logarithm: float) -> float:
    """Return the rise in percent for a rise of the logarithm, at most a million."""
    return 100 * math.expm1(min(logarithm, math.log1p(_MOST_PERCENT / 100)))


def spread(interval: Interval, sign: Literal["", "+"] = "") -> str:
    """Return a value with its interval: "12.1 ± 2.3", or with both ends if it is skewed.

    >>> spread(Interval(12.06, 9.8, 14.4))
    '12.1 ± 2.3'
    >>> spread(Interval(1.0, 0.1, 3.0))
    '1.0 (0.1 to 3.0)'
    >>> spread(Interval(100.0, 100.0, 100.0))
    '100.0'
    """
    value, low, high, half = interval.value, interval.low, interval.high, interval.half_width
    digits = 0 if max(abs(value), half) >= 1000 else 1 if half >= 0.05 or half == 0 else 2
    text = f"{value:{sign},.{digits}f}"
    if not half:
        return text
    if max(high - value, value - low) > _SKEW * half:
        return f"{text} ({low:,.{digits}f} to {high:,.{digits}f})"
    return f"{text} ± {half:,.{digits}f}"
