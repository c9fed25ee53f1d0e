"""Stop a run that cannot learn, and refuse to save NaN, infinite or absurdly large numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from lorakit.adapters import Adapter
from lorakit.adapters.sharded import whole
from lorakit.distributed.processes import run_on_all
from lorakit.errors import TrainingError, first_few
from lorakit.files.tensor_files import LARGEST_WEIGHT, has_usable_numbers
from lorakit.layers import LowRankUpdate
from lorakit.training.step import in_float64

_MOST_OVERFLOWS = 20
"""Maximum consecutive skipped float16 steps: the loss scale starts at 2^16 and halves each time."""
_MOST_UNREAD = 256
"""Most numbers that wait on a device before they are read."""


def is_read_freely(tensor: Tensor) -> bool:
    """Whether reading a tensor makes no device wait."""
    return tensor.device.type == "cpu"


@dataclass
class LearningWatch:
    """Checks losses and gradients during training, and stops a run that cannot learn.

    On a CPU an error is raised in the step of the number that is not one. Elsewhere reading a loss
    or norm would make the device wait in every step. There the numbers are kept, and `read` checks
    them: in the first step, whenever the Trainer logs, evaluates or saves, and at the end. The
    error names the step of the number all the same, and nothing that came of it is saved.

    At first every lora_A has a zero gradient, because lora_B is zero. So the factors of all updates
    are checked together, and one nonzero gradient is enough.
    """

    why_constant: str | None = None
    """Why the loss may not change with the adapter, where the trainer knows."""
    has_seen_gradients: bool = False
    overflows: int = 0
    """Number of consecutive optimizer steps that the float16 loss scaler skipped."""
    _unread: list[tuple[str, int, Tensor]] = field(default_factory=list)
    """What each number is, the completed optimizer steps before it, and the number."""

    def check_loss(self, loss: Tensor, step: int, scaler: GradScaler | None) -> None:
        """Refuse a loss that is NaN or infinite.

        Args:
            loss: The loss of one batch, a scalar.
            step: Number of completed optimizer steps.
            scaler: The float16 loss scaler, if any. With one, occasional overflows are expected,
                and `check_norm` counts them.

        Raises:
            TrainingError: The loss is NaN or infinite.
        """
        if scaler is None:
            self._check("The loss", loss, step)

    def check_gradients(self, model: nn.Module, step: int, scaler: GradScaler | None) -> None:
        """Check every gradient until one step has shown that the adapter learns.

        Call it after the backward pass and before gradients are clipped.

        Args:
            model: The model in training.
            step: Number of completed optimizer steps.
            scaler: The float16 loss scaler, if any.

        Raises:
            TrainingError: A gradient is NaN or infinite, or all gradients of the adapter are zero.
        """
        if self.has_seen_gradients:
            return
        self.read()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        broken = [name for name, p in trained.items() if not _is_finite_gradient(p.grad)]
        if broken and scaler is None:
            raise TrainingError(
                f"The gradients of {len(broken)} parameters ({_some(broken)}) are NaN or infinite "
                f"on step {step + 1}, expected numbers. " + advice_for_nan(step)
            )
        if broken:
            return  # the scaler skips this step; `check_norm` counts it
        # Sorted, because with sharded parameters all processes must gather in the same order.
        factors = sorted(_factor_names(model) & trained.keys())
        if any(_is_nonzero(trained[name].grad) for name in factors):
            self.has_seen_gradients = True
            return
        others = [name for name in trained if name not in set(factors)]
        heads_learn = any(_is_nonzero(trained[name].grad) for name in others)
        heads_are_zero = any(not torch.count_nonzero(whole(trained[name])) for name in others)
        if heads_learn and heads_are_zero:
            return  # a head of zeros passes no gradient down until its first update
        raise TrainingError(
            _zero_gradient_message(trained, factors, step, heads_learn, self.why_constant)
        )

    def check_norm(self, norm: Any, step: int, scaler: GradScaler | None) -> None:
        """Refuse a gradient norm that is NaN or infinite, before the optimizer step.

        Args:
            norm: Norm of all gradients before clipping, a scalar tensor or number.
            step: Number of completed optimizer steps.
            scaler: The float16 loss scaler, if any.

        Raises:
            TrainingError: The norm is NaN or infinite, or float16 has overflowed too often.
        """
        norm = torch.as_tensor(norm)
        if scaler is None:
            self._check("The norm of the gradients", norm, step)
            return
        if torch.isfinite(norm):  # the scaler has read the gradients in this step anyway
            self.overflows = 0
            return
        self.overflows += 1
        if self.overflows >= _MOST_OVERFLOWS:
            raise TrainingError(
                f"The float16 gradients overflowed in {self.overflows} consecutive steps, down to "
                f"a loss scale of {scaler.get_scale():g}; expected numbers. "
                "Train with training.bf16=true instead of training.fp16, or with neither."
            )

    def _check(self, what: str, number: Tensor, step: int) -> None:
        """Check a scalar now if reading it is free, otherwise at the next `read`."""
        self._unread.append((what, step, number.detach()))
        if is_read_freely(number) or len(self._unread) >= _MOST_UNREAD:
            self.read()

    def read(self) -> None:
        """Read the numbers that wait on the device.

        Raises:
            TrainingError: One of them is NaN or infinite; names the first.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        values = torch.stack([in_float64(number) for _, _, number in unread]).tolist()
        for (what, step, _), value in zip(unread, values, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"{what} is {value} on step {step + 1}, expected a number. "
                    + advice_for_nan(step)
                )


def _factor_names(model: nn.Module) -> set[str]:
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, LowRankUpdate)
        for name, _ in module.named_parameters(recurse=False)
    }


def _is_finite_gradient(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(whole(gradient)).all())


def _is_nonzero(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(torch.count_nonzero(whole(gradient)))


def _zero_gradient_message(
    trained: dict[str, nn.Parameter],
    names: list[str],
    step: int,
    heads_learn: bool,
    why_constant: str | None,
) -> str:
    subject = "The adapter's gradients" if heads_learn else "All gradients"
    unreached = all(trained[name].grad is None for name in names)
    if unreached:
        reason = (
            "No gradient reached the adapter: the loss does not depend on the adapted modules, or "
            "gradient checkpointing cuts it off. Choose other lora.target_modules, or leave out "
            "training.activation_checkpointing"
        )
    else:
        why_constant = why_constant or (
            "The loss does not change with the model's output: the labels are all masked, or the "
            "base's activations or weights are zero"
        )
        reason = f"{why_constant}. Look at the examples with `--dry-run`"
    return (
        f"{subject} are zero on step {step + 1}, for {len(names)} LoRA parameters "
        f"({_some(names)}); expected nonzero ones. {reason}."
    )


def advice_for_nan(step: int) -> str:
    """Return what to change where NaN or infinity appears after a number of optimizer steps."""
    if step == 0:
        return (
            "On the first step the base model or the data is at fault: try dtype=float32 and "
            "without training.bf16, and look at the examples with `--dry-run`."
        )
    return "Lower training.learning_rate, or set training.max_grad_norm and training.warmup_steps."


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")


def require_finite_loss(metrics: Mapping[str, float], step: int) -> None:
    """Refuse an evaluation whose loss is NaN or infinite.

    Args:
        metrics: Metrics of the evaluation.
        step: Number of completed optimizer steps.

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


def require_sound(adapter: Adapter, step: int, optimizer: Any = None) -> None:
    """Refuse to save an adapter that the last optimizer step has made useless.

    No loss follows the last step, so this checks the tensors themselves.

    Args:
        adapter: The adapter to save.
        step: Number of completed optimizer steps.
        optimizer: The optimizer whose state is saved with it, if any.

    Raises:
        TrainingError: A tensor has NaN, infinite or absurdly large numbers.
    """
    pairs = {
        f"{path}.lora_{n}": t
        for path, ab in adapter.factors.items()
        for n, t in zip("AB", ab, strict=True)
    }
    others = {**adapter.companions, **adapter.replaced, **adapter.trained_tokens}
    _require("adapter", {**pairs, **others}, step)
    if optimizer is not None:
        run_on_all(lambda: _require("optimizer's state", _states(optimizer), step))


def _require(what: str, tensors: Mapping[str, Tensor], step: int) -> None:
    check = has_usable_numbers if what == "adapter" else _is_finite
    broken = sorted(name for name, tensor in tensors.items() if not check(tensor))
    if broken:
        raise TrainingError(
            f"The {what} is of no use after step {step}: {len(broken)} of its {len(tensors)} "
            f"tensors ({first_few(broken)}) hold NaN, infinity or numbers beyond "
            f"{LARGEST_WEIGHT:g}, expected numbers that give a loss. It is not saved. "
            + advice_for_nan(step)
        )


def _states(optimizer: Any) -> dict[str, Tensor]:
    """Return this process's shard of an optimizer's state."""
    return {
        f"{key} of parameter {number}": getattr(value, "_local_tensor", value)
        for number, state in enumerate(optimizer.state.values())
        for key, value in state.items()
        if torch.is_tensor(value)
    }


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
