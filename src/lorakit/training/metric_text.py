"""What a metric is called in reports, pictures and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

_MACRO = ("eval_precision", "eval_recall", "eval_f1")


def metric_text(key: str, metrics: Mapping[str, float]) -> str:
    """Return a metric in words; an average over classes, each counting alike, is called macro.

    >>> metric_text("eval_f1", {"eval_f1": 0.5, "eval_f1_red": 0.5})
    'macro f1'
    """
    name = key.removeprefix("eval_").replace("_", " ")
    # Entities are counted, and not averaged; they have no values class by class.
    is_macro = key in _MACRO and any(other.startswith("eval_f1_") for other in metrics)
    return f"macro {name}" if is_macro else name
