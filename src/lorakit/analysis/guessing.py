"""Reference metrics without learning: those of guessing, or from before training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.config import NOT_COUNTED, TaskType
from lorakit.data.preferences import PARTS, VOTES_KEY

if TYPE_CHECKING:
    from datasets import Dataset

    from lorakit.recipes.run_directory import RunDirectory

EVENT = "guessing"
"""Event of the row of metrics.jsonl with the metrics of guessing."""


@dataclass(frozen=True)
class Reference:
    """Metrics without learning."""

    metrics: Mapping[str, float]
    """Values by metric of the evaluation."""
    how: str
    """Origin of the metrics."""
    count: int = 0
    """Number of guessed examples or words; 0 if nothing was guessed."""

    def beaten_by(self, metric: str, value: float, is_minimized: bool, spread: float = 0.0) -> bool:
        """Return whether a value is better by more than its spread and that of guessing.

        Args:
            metric: Name of the metric; an unknown one counts as beaten.
            value: Value after training.
            is_minimized: Whether lower values are better.
            spread: Standard deviation of the value.
        """
        expected = self.metrics.get(metric)
        if expected is None:
            return True
        if metric == "eval_accuracy" and self.count:  # the standard deviation of a binomial share
            spread = max(spread, math.sqrt(expected * (1 - expected) / self.count))
        gain = expected - value if is_minimized else value - expected
        return gain > spread


def guesses(task_type: TaskType, validation: Dataset | None) -> dict[str, Any]:
    """Return the metrics of a guess that knows the shares of the classes but no text.

    Args:
        task_type: Task; only tasks with classes, and preferences, are guessed.
        validation: Encoded examples with "labels".

    Returns: Metrics with "eval_" prefixes and `count`, or an empty dictionary.
    """
    if validation is not None and PARTS in getattr(validation, "column_names", ()):
        return _guess_answers(validation)
    if validation is None or task_type not in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
        return {}
    labels: Any = validation["labels"][:]
    first = labels[0] if labels else 0.0
    if isinstance(first, float) or (isinstance(first, list) and isinstance(first[0], float)):
        return {}  # several labels, or numbers
    is_words = task_type == TaskType.TOKEN_CLS
    ids = [one for row in labels for one in row if one != NOT_COUNTED] if is_words else list(labels)
    return _guess_classes(ids, with_averages=not is_words) if ids else {}


def _guess_answers(validation: Dataset) -> dict[str, Any]:
    """Return the metrics of guessing which answer is better, or the commonest vote."""
    count, share = len(validation), 0.5
    if VOTES_KEY in validation.column_names:
        votes: Any = validation[VOTES_KEY]
        good = sum(votes) / count
        share = max(good, 1 - good)
    return {"count": count, "eval_accuracy": share}


def _guess_classes(ids: Sequence[int], *, with_averages: bool) -> dict[str, Any]:
    """Return the metrics of guessing: share of the largest class, and entropy of the shares.

    >>> _guess_classes([0, 0, 1, 2], with_averages=True)["eval_accuracy"]
    0.5
    """
    shares = [count / len(ids) for count in Counter(ids).values()]
    values: dict[str, Any] = {
        "count": len(ids),
        "eval_accuracy": max(shares),
        "eval_loss": -sum(share * math.log(share) for share in shares),
    }
    if (
        with_averages
    ):  # macro averages of random guesses, which are above those of the largest class
        values |= dict.fromkeys(("eval_precision", "eval_recall", "eval_f1"), 1 / len(shares))
    return values


def warning(reference: Reference | None, metrics: Mapping[str, float]) -> str | None:
    """Return a warning if the metrics are no better than chance, else None.

    Args:
        reference: Reference metrics; None if there are none.
        metrics: Metrics of the validation examples, with "eval_" prefixes.
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
    """Return the reference metrics of a run, or None if it has none."""
    rows = run.metrics()
    before = [row for row in rows if row.get("event") == "evaluation" and row.get("step") == 0]
    guessed = [row for row in rows if row.get("event") == EVENT]
    if guessed:
        row = guessed[-1]
        return Reference(_metrics(row), "guessing by the classes' shares", int(row["count"]))
    return Reference(_metrics(before[-1]), "the model before training") if before else None


def first_reference(runs: Iterable[RunDirectory]) -> Reference | None:
    """Return the reference metrics of runs on the same examples, or None."""
    found = (reference_of(run) for run in runs)
    return next((one for one in found if one is not None), None)


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k.startswith("eval_") and isinstance(v, (int, float))}
