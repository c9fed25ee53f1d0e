"""Names of metrics: which there are, and their words in reports, plots and on the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorakit.adapters.inference_settings import InferenceSettings
    from lorakit.config import TaskType

_AVERAGES = ("eval_precision", "eval_recall", "eval_f1")

MOST_CLASSES_LISTED = 20
"""Up to so many classes have a score each among the metrics."""


def metric_text(key: str, settings: InferenceSettings) -> str:
    """Return the name of a metric in words; an unweighted mean over classes is called macro.

    Args:
        key: Key of the metric, with the "eval_" prefix.
        settings: Inference settings of the adapter, with task and classes.

    >>> from lorakit.adapters.inference_settings import InferenceSettings
    >>> metric_text("eval_f1", InferenceSettings(task_type="SEQ_CLS", labels=("red", "blue")))
    'macro f1'
    >>> metric_text("eval_f1", InferenceSettings(task_type="TOKEN_CLS", labels=("O", "B-PER")))
    'f1'
    """
    name = metric_name(key)
    is_macro = key in _AVERAGES and has_averages(settings.task_type, settings.labels or ())
    return f"macro {name}" if is_macro else name


def metric_name(key: str) -> str:
    """Return the key of a metric in words.

    >>> metric_name("eval_roc_auc")
    'roc auc'
    """
    return key.removeprefix("eval_").replace("_", " ")


def classification_metric_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of all metrics of `classification_metrics`.

    >>> classification_metric_names(["no", "yes"])
    ('accuracy', 'precision', 'recall', 'f1', 'roc_auc', 'f1_no', 'f1_yes')
    """
    listed = labels if len(labels) <= MOST_CLASSES_LISTED else ()
    two = ("roc_auc",) if len(labels) == 2 else ()
    return ("accuracy", "precision", "recall", "f1", *two, *(f"f1_{name}" for name in listed))


def is_entity_scheme(labels: Sequence[str]) -> bool:
    """Return whether tags mark entities: "O", or a prefix of IOB, IOBES or BILOU and a kind.

    >>> is_entity_scheme(["O", "B-PER", "I-PER"])
    True
    >>> is_entity_scheme(["NOUN", "VERB"])
    False
    """
    kinds = [label for label in labels if label != "O"]
    return bool(kinds) and all(re.fullmatch(r"[BIESLU]-.+", label) for label in kinds)


def has_averages(task_type: TaskType | None, labels: Sequence[str]) -> bool:
    """Return whether precision, recall and F1 are macro averages over classes.

    For entities they are micro averages, over all kinds.
    """
    from lorakit.config import TaskType  # not for names alone: `lorakit --help` is quick

    if task_type == TaskType.TOKEN_CLS:
        return not is_entity_scheme(labels)
    return task_type == TaskType.SEQ_CLS
