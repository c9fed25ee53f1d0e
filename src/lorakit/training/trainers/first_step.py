"""Whether a run can learn: gradients that are zero or NaN are found on the first step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from lorakit.adapters.sharded import whole
from lorakit.errors import TrainingError
from lorakit.layers import LowRankUpdate

_MOST_OVERFLOWS = 20
"""Steps a float16 run may skip on end: the loss scale starts at 2^16 and halves each time."""


@dataclass
class LearningWatch:
    """Watches losses and gradients, and stops a run that cannot learn.

    At the start every lora_A has a zero gradient, because lora_B is zero; so the factors of all
    updates are looked at together, and it is enough that one of them has a gradient.
    """

    has_seen_gradients: bool = False
    overflows: int = 0
    """Optimizer steps on end that the float16 loss scaler skipped."""

    def check_loss(self, loss: Tensor, step: int, scaler: GradScaler | None) -> None:
        """Refuse a loss that is not a number.

        Args:
            loss: The loss of one batch, a scalar.
            step: Optimizer steps done so far.
            scaler: The float16 loss scaler; None without one. With one an overflow is
                expected now and then, and `check_norm` counts them.

        Raises:
            TrainingError: The loss is NaN or infinite.
        """
        if scaler is None and not torch.isfinite(loss).all():
            raise TrainingError(
                f"The loss is {loss.item()} on step {step + 1}, expected a number. "
                + advice_for_nan(step)
            )

    def check_gradients(self, model: nn.Module, step: int, scaler: GradScaler | None) -> None:
        """Look at every gradient until a step has shown that the adapter learns.

        Call it after the backward pass and before the gradients are clipped.

        Args:
            model: The model in training.
            step: Optimizer steps done so far.
            scaler: The float16 loss scaler; None without one.

        Raises:
            TrainingError: A gradient is NaN or infinite, or all of the adapter's are zero.
        """
        if self.has_seen_gradients:
            return
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        broken = [name for name, p in trained.items() if not _is_finite(p.grad)]
        if broken and scaler is None:
            raise TrainingError(
                f"The gradients of {len(broken)} parameters ({_some(broken)}) are NaN or infinite "
                f"on step {step + 1}, expected numbers. " + advice_for_nan(step)
            )
        if broken:
            return  # the scaler skips this step; `check_norm` counts it
        # In one order, for with sharded parameters the processes look at each gradient together.
        factors = sorted(_factor_names(model) & trained.keys())
        if any(_is_nonzero(trained[name].grad) for name in factors):
            self.has_seen_gradients = True
            return
        others = [name for name in trained if name not in set(factors)]
        heads_learn = any(_is_nonzero(trained[name].grad) for name in others)
        heads_are_zero = any(not torch.count_nonzero(whole(trained[name])) for name in others)
        if heads_learn and heads_are_zero:
            return  # a head that starts at zero passes no gradient down until it has moved
        raise TrainingError(_zero_message(trained, factors, step, heads_learn))

    def check_norm(self, norm: Any, step: int, scaler: GradScaler | None) -> None:
        """Refuse a gradient norm that is not a number, before the optimizer uses the gradients.

        Args:
            norm: Of all gradients before clipping, a scalar tensor or number.
            step: Optimizer steps done so far.
            scaler: The float16 loss scaler; None without one.

        Raises:
            TrainingError: The norm is NaN or infinite, or float16 has overflowed too often.
        """
        if bool(torch.isfinite(torch.as_tensor(norm))):
            self.overflows = 0
            return
        if scaler is None:
            raise TrainingError(
                f"The norm of the gradients is {float(norm)} on step {step + 1}, expected a "
                "number. " + advice_for_nan(step)
            )
        self.overflows += 1
        if self.overflows >= _MOST_OVERFLOWS:
            raise TrainingError(
                f"The float16 gradients overflowed in {self.overflows} steps on end, down to a "
                f"loss scale of {scaler.get_scale():g}; expected numbers. "
                "Train with training.bf16=true in place of training.fp16, or with neither."
            )


def _factor_names(model: nn.Module) -> set[str]:
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, LowRankUpdate)
        for name, _ in module.named_parameters(recurse=False)
    }


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(whole(gradient)).all())


def _is_nonzero(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(torch.count_nonzero(whole(gradient)))


def _zero_message(
    trained: dict[str, nn.Parameter], names: list[str], step: int, heads_learn: bool
) -> str:
    subject = "The adapter's gradients" if heads_learn else "All gradients"
    unreached = all(trained[name].grad is None for name in names)
    if unreached:
        reason = (
            "No gradient came back to the adapter at all: the loss does not depend on the adapted "
            "modules, or gradient checkpointing cuts it off. Choose other lora.target_modules, or "
            "leave out training.activation_checkpointing"
        )
    else:
        reason = (
            "The loss does not change with the model's output: the labels are all masked, or the "
            "base's activations or weights are zero. Look at the examples with `--dry-run`"
        )
    return (
        f"{subject} are zero on step {step + 1}, for {len(names)} LoRA parameters "
        f"({_some(names)}); expected some that are not. {reason}."
    )


def advice_for_nan(step: int) -> str:
    """Say what to change where numbers are lost after so many optimizer steps."""
    if step == 0:
        return (
            "On the first step the base model or the data is at fault: try dtype=float32 and "
            "without training.bf16, and look at the examples with `--dry-run`."
        )
    return "Lower training.learning_rate, or set training.max_grad_norm and training.warmup_steps."


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
