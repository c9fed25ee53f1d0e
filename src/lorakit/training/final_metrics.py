"""The evaluation of the weights that a run ended with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lorakit.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import Trainer


def final_metrics(trainer: Trainer) -> dict[str, float]:
    """Return the evaluation metrics of the weights the trainer ended with.

    They were measured during training, unless no evaluation fell on the last or the best step.
    A run that does not evaluate has none.
    """
    if trainer.eval_dataset is None or trainer.args.eval_strategy == "no":
        return {}
    state = trainer.state
    is_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    step = state.best_global_step if is_best else state.global_step
    rows = [row for row in state.log_history if row["step"] == step and "eval_loss" in row]
    metrics = rows[-1] if rows else trainer.evaluate()
    return {
        key: value
        for key, value in metrics.items()
        if key.startswith("eval_") and not is_speed(key)
    }


_SPEEDS = ("_runtime", "_per_second", "_preparation_time")


def is_speed(key: str) -> bool:
    """Whether a logged value is about this session's speed, not about the model."""
    return key.endswith(_SPEEDS) or key in ("total_flos", "eval_num_tokens")


def require_finite_loss(metrics: Mapping[str, float], step: int) -> None:
    """Refuse the evaluation of a model that gives no numbers.

    Args:
        metrics: Of the evaluation.
        step: Optimizer steps done so far.

    Raises:
        TrainingError: A loss among them is NaN or infinite.
    """
    for key, value in metrics.items():
        if key.endswith("loss") and not math.isfinite(value):
            raise TrainingError(
                f"The evaluation's loss ({key}) is {value} after step {step}, expected a number: "
                "the adapter, the base or the data is at fault. Lower training.learning_rate, or "
                "set training.max_grad_norm and training.warmup_steps; without a run, try "
                "dtype=float32."
            )
