"""Names of metrics in reports, plots and on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorakit.adapters.inference_settings import InferenceSettings

_AVERAGES = ("eval_precision", "eval_recall", "eval_f1")


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
    from lorakit.analysis.metrics import has_averages

    name = metric_name(key)
    is_macro = key in _AVERAGES and has_averages(settings.task_type, settings.labels or ())
    return f"macro {name}" if is_macro else name


def metric_name(key: str) -> str:
    """Return the key of a metric in words.

    >>> metric_name("eval_roc_auc")
    'roc auc'
    """
    return key.removeprefix("eval_").replace("_", " ")
