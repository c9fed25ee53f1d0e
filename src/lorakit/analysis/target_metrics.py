"""Metrics of texts with several labels and of predicted numbers, with scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorakit.analysis.metric_text import MOST_CLASSES_LISTED

_HALF = 0.5
_AVERAGED = ("rmse", "mae", "pearson", "spearman")


def label_probabilities(logits: Any) -> Any:
    """Return the probability of each label, array (examples, labels), in float64."""
    return 1.0 / (1.0 + np.exp(-np.asarray(logits, dtype=np.float64)))


def best_thresholds(targets: Any, logits: Any) -> tuple[float, ...]:
    """Return for each label the probability above which predicting it gives the best F1.

    A threshold lies halfway between two neighbouring probabilities; of equally good ones it is the
    nearest to 0.5. A label that no example has, or all have, keeps 0.5.

    Args:
        targets: 1 where an example has a label, else 0, array (examples, labels).
        logits: Scores, array (examples, labels).
    """
    probabilities = label_probabilities(logits)
    return tuple(
        _best_threshold(targets[:, label], probabilities[:, label])
        for label in range(targets.shape[1])
    )


def _best_threshold(targets: Any, probabilities: Any) -> float:
    positives = int(targets.sum())
    if positives in (0, len(targets)):
        return _HALF
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    hits = np.cumsum(targets[order])
    taken = np.arange(1, len(ranked) + 1)
    f1 = 2 * hits / (taken + positives)
    below = np.append(ranked[1:], 0.0)
    possible = below < ranked  # equal probabilities are predicted together
    middle = (ranked + below) / 2
    good = possible & (f1 >= f1[possible].max() - 1e-12)
    nearest = np.abs(np.where(good, middle, np.inf) - _HALF).argmin()
    # Where 0.5 itself separates the same examples it is the threshold.
    if below[nearest] < _HALF < ranked[nearest]:
        return _HALF
    return float(middle[nearest])


def multi_label_metrics(
    targets: Any, logits: Any, labels: Sequence[str], thresholds: Sequence[float] = ()
) -> dict[str, float]:
    """Compare predicted sets of labels with the true ones.

    micro_f1 counts all decisions alike, macro_f1 all labels; up to 20 labels also have a separate
    F1, under "f1_<label>". ranking_average_precision asks, for each true label, which share of the
    labels ranked at least as high are true; it uses no thresholds.

    Args:
        targets: 1 where an example has a label, else 0, array (examples, labels).
        logits: Scores, array (examples, labels).
        labels: Names of the labels.
        thresholds: Probability above which each label is predicted; none for 0.5.
    """
    from sklearn.metrics import label_ranking_average_precision_score

    true = np.asarray(targets) > _HALF
    probabilities = label_probabilities(logits)
    predicted = probabilities > np.asarray(thresholds or [_HALF] * len(labels))
    # Counted here, since scikit-learn reads a single column as two classes.
    hits, decisions = (true & predicted).sum(0), true.sum(0) + predicted.sum(0)
    scores = 2 * hits / np.maximum(decisions, 1)
    # A label that occurs neither in truth nor in predictions says nothing about the model.
    present = [at for at in range(len(labels)) if decisions[at]]
    metrics = {
        "micro_f1": float(2 * hits.sum() / max(decisions.sum(), 1)),
        "macro_f1": float(np.mean([scores[at] for at in present])) if present else 0.0,
        "ranking_average_precision": float(
            label_ranking_average_precision_score(true.astype(int), probabilities)
        ),
    }
    if len(labels) <= MOST_CLASSES_LISTED:
        metrics |= {f"f1_{labels[at]}": float(scores[at]) for at in present}
    return metrics


def multi_label_metric_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of all metrics of `multi_label_metrics`.

    >>> multi_label_metric_names(["red", "blue"])
    ('micro_f1', 'macro_f1', 'ranking_average_precision', 'f1_red', 'f1_blue')
    """
    listed = labels if len(labels) <= MOST_CLASSES_LISTED else ()
    return (
        *("micro_f1", "macro_f1", "ranking_average_precision"),
        *(f"f1_{name}" for name in listed),
    )


def regression_metrics(targets: Any, predictions: Any, names: Sequence[str]) -> dict[str, float]:
    """Compare predicted numbers with the true ones.

    A correlation with constant numbers is 0. With several numbers, each also has its metrics, under
    "rmse_<name>" and so on, and the plain names are their means.

    Args:
        targets: True numbers, array (examples,) or (examples, numbers).
        predictions: Predicted numbers, of the same size.
        names: Names of the numbers.
    """
    true = np.asarray(targets, dtype=np.float64).reshape(-1, len(names))
    got = np.asarray(predictions, dtype=np.float64).reshape(-1, len(names))
    each = [_number_metrics(true[:, at], got[:, at]) for at in range(len(names))]
    metrics = {key: float(np.mean([one[key] for one in each])) for key in _AVERAGED}
    if len(names) > 1:
        metrics |= {
            f"{key}_{name}": one[key] for name, one in zip(names, each, strict=True) for key in one
        }
    return metrics


def _number_metrics(true: Any, got: Any) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    is_constant = len(true) < 2 or np.ptp(true) == 0 or np.ptp(got) == 0
    pearson: Any = None if is_constant else pearsonr(true, got)
    spearman: Any = None if is_constant else spearmanr(true, got)
    return {
        "rmse": float(np.sqrt(np.mean((true - got) ** 2))),
        "mae": float(np.mean(np.abs(true - got))),
        "pearson": 0.0 if pearson is None else float(pearson.statistic),
        "spearman": 0.0 if spearman is None else float(spearman.statistic),
    }


def regression_metric_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of all metrics of `regression_metrics`.

    >>> regression_metric_names(["score"])
    ('rmse', 'mae', 'pearson', 'spearman')
    """
    single = len(names) < 2
    return _AVERAGED + (
        () if single else tuple(f"{key}_{name}" for name in names for key in _AVERAGED)
    )
