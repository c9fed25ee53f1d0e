"""The metric by which checkpoints are compared: known before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.errors import ConfigError, did_you_mean


class UnknownMetricError(ConfigError):
    """The evaluation does not have the metric by which checkpoints are compared."""

    known: Sequence[str] = ()
    """Those it has."""


def require_metric(training: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse to pick the best checkpoint by a metric that the evaluation does not have.

    Args:
        training: What `resolve_training` returned.
        known: The metrics of the task's evaluation, without their "eval_" prefix.

    Raises:
        UnknownMetricError: Names those there are.
    """
    wanted = training.get("metric_for_best_model")
    if wanted is None or wanted.removeprefix("eval_") in known:
        return
    error = UnknownMetricError(
        f"training.metric_for_best_model: got {wanted!r}, expected a metric of the evaluation: "
        f"{', '.join(known)}.{did_you_mean(wanted.removeprefix('eval_'), known)}"
    )
    error.known = known
    raise error
