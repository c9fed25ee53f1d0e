"""What an evaluation gives where nothing was learnt: by guessing, or before training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.config import NOT_COUNTED, TaskType

if TYPE_CHECKING:
    from datasets import Dataset

    from lorakit.recipes.run_directory import RunDirectory

EVENT = "guessing"
"""Name of the row of metrics.jsonl that holds what guessing would give."""


@dataclass(frozen=True)
class Reference:
    """What the metrics are where nothing was learnt."""

    metrics: Mapping[str, float]
    """By the names of the evaluation's metrics."""
    how: str
    """What gives them."""
    count: int = 0
    """What was guessed: examples, or words; 0 where nothing was."""

    def beaten_by(self, metric: str, value: float, is_minimized: bool, spread: float = 0.0) -> bool:
        """Return whether a value is better by more than its spread and that of guessing.

        Args:
            metric: Its name; one that is not known here counts as beaten.
            value: The metric after training.
            is_minimized: Whether a low value is good.
            spread: Standard deviation of the value.
        """
        expected = self.metrics.get(metric)
        if expected is None:
            return True
        if metric == "eval_accuracy" and self.count:  # a binomial share of so many
            spread = max(spread, math.sqrt(expected * (1 - expected) / self.count))
        gain = expected - value if is_minimized else value - expected
        return gain > spread


def guesses(task_type: TaskType, validation: Dataset | None) -> dict[str, Any]:
    """Return the metrics of a guess that knows the classes' shares and no text.

    Args:
        task_type: One with classes; nothing is guessed for others.
        validation: Encoded examples with "labels".

    Returns: Metrics with "eval_" prefixes and `count`, or nothing.
    """
    if validation is None or task_type not in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
        return {}
    labels: Any = validation["labels"]
    is_words = task_type == TaskType.TOKEN_CLS
    ids = [one for row in labels for one in row if one != NOT_COUNTED] if is_words else list(labels)
    return _of_classes(ids, with_averages=not is_words) if ids else {}


def _of_classes(ids: Sequence[int], *, with_averages: bool) -> dict[str, Any]:
    """Return what guessing gives: the commonest class's share, and the entropy of the shares.

    >>> _of_classes([0, 0, 1, 2], with_averages=True)["eval_accuracy"]
    0.5
    """
    shares = [count / len(ids) for count in Counter(ids).values()]
    values: dict[str, Any] = {
        "count": len(ids),
        "eval_accuracy": max(shares),
        "eval_loss": -sum(share * math.log(share) for share in shares),
    }
    if with_averages:  # macro averages of a guess at random, which are above the commonest class's
        values |= dict.fromkeys(("eval_precision", "eval_recall", "eval_f1"), 1 / len(shares))
    return values


def warning(reference: Reference | None, metrics: Mapping[str, float]) -> str | None:
    """Say that nothing seems to have been learnt, where the metrics are no better than chance.

    Args:
        reference: What the metrics are compared with; None where there is nothing.
        metrics: Of the validation examples, with "eval_" prefixes.
    """
    metric = "eval_accuracy" if "eval_accuracy" in metrics else "eval_loss"
    value = metrics.get(metric)
    if reference is None or value is None:
        return None
    if reference.beaten_by(metric, value, is_minimized=metric == "eval_loss"):
        return None
    return (
        f"Nothing seems to have been learnt: the validation {metric.removeprefix('eval_')} of "
        f"{value:.4g} is not better than {reference.how} ({reference.metrics[metric]:.4g}) by more "
        "than chance."
    )


def reference_of(run: RunDirectory) -> Reference | None:
    """Return what a run's metrics can be compared with, or None where it was not found out."""
    rows = run.metrics()
    before = [row for row in rows if row.get("event") == "evaluation" and row.get("step") == 0]
    guessed = [row for row in rows if row.get("event") == EVENT]
    if guessed:
        row = guessed[-1]
        return Reference(_metrics(row), "guessing by the classes' shares", int(row["count"]))
    return Reference(_metrics(before[-1]), "the model before training") if before else None


def first_reference(runs: Iterable[RunDirectory]) -> Reference | None:
    """Return what runs on the same examples can be compared with."""
    found = (reference_of(run) for run in runs)
    return next((one for one in found if one is not None), None)


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k.startswith("eval_") and isinstance(v, (int, float))}
