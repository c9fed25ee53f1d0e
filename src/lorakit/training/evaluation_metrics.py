"""The metrics of a run: the one that picks the best checkpoint, and those of the final weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorakit.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from transformers import Trainer

TOKENS_PER_S = "train_tokens_per_s"
PEAK_MEMORY = "peak_memory_bytes"

_SPEEDS = ("_runtime", "_per_second", "_preparation_time")


class UnknownMetricError(ConfigError):
    """The evaluation does not have the metric that picks the best checkpoint."""

    known: Sequence[str] = ()
    """The metrics of the evaluation."""


def require_metric(training: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse to pick the best checkpoint by a metric that the evaluation does not have.

    Args:
        training: The result of `resolve_training`.
        known: The metrics of the task's evaluation, without their "eval_" prefix.

    Raises:
        UnknownMetricError: Lists the metrics of the evaluation.
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


def final_metrics(trainer: Trainer) -> dict[str, float]:
    """Return the evaluation metrics of the final weights; none for a run without evaluation.

    They were measured during training, unless no evaluation took place at the last or best step.
    """
    if not is_evaluated(trainer):
        return {}
    step = final_step(trainer)
    logged = [
        entry
        for entry in trainer.state.log_history
        if entry["step"] == step and "eval_loss" in entry
    ]
    return model_metrics(logged[-1] if logged else trainer.evaluate())


def is_evaluated(trainer: Trainer) -> bool:
    """Whether a run has validation examples and evaluates on them."""
    return trainer.eval_dataset is not None and trainer.args.eval_strategy != "no"


def final_step(trainer: Trainer) -> int:
    """Return the optimizer step of the final weights: the best, or the last."""
    best = best_step(trainer)
    return trainer.state.global_step if best is None else best


def best_step(trainer: Trainer) -> int | None:
    """Return the optimizer step of the best checkpoint; None if the last weights are kept."""
    is_best = trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint
    return trainer.state.best_global_step if is_best else None


def model_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of an evaluation that describe the model, not its speed."""
    return {
        key: value
        for key, value in metrics.items()
        if key.startswith("eval_") and not is_speed(key)
    }


def is_speed(key: str) -> bool:
    """Whether a logged value describes the speed of this session, not the model."""
    return key.endswith(_SPEEDS) or key in ("total_flos", "eval_num_tokens", TOKENS_PER_S)
