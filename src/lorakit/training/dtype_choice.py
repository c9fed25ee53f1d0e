"""`dtype: auto`: the dtypes that train a recipe at full quality, and the choice between them.

float32 always is one. The other computes products in bfloat16, without rounding a weight of the
checkpoint: on the base as it is if its weights are bfloat16, else under autocast on a float32 base.
Trained parameters are float32 in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from lorakit.distributed.sharding import is_sharding_requested
from lorakit.models.pretrained import auto_model
from lorakit.models.skeleton import build_skeleton, load_config, saved_dtype
from lorakit.quantization.devices import has_dtype
from lorakit.quantization.load import is_quantized
from lorakit.training.tasks.base import loading_options

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe

QUICKER = 1.5
"""Smallest speed, relative to float32, for which float32 is given up.

Forward and backward are measured; with the rest of a run, a smaller gain would hardly be noticed.
"""

_LARGE_PARAMETERS = 200_000_000
"""Parameters from which on a step is nearly all products, so that nothing is left to measure.
Such a base also takes long to load twice."""


@dataclass(frozen=True)
class Precision:
    """The dtype of a base, and whether its products run under autocast to bfloat16."""

    dtype: Literal["saved", "float32", "bfloat16"]
    autocasts: bool = False

    def __str__(self) -> str:
        if self.dtype == "saved":
            return "as saved"
        return f"{self.dtype} with products in bfloat16" if self.autocasts else self.dtype

    def apply_to(self, recipe: Recipe) -> Recipe:
        """Return the recipe with this precision, as a run records it."""
        bf16 = {"bf16": True} if self.autocasts else {}
        return recipe.model_copy(
            update={"dtype": self.dtype, "training": {**recipe.training, **bf16}}
        )


SAVED = Precision("saved")
FLOAT32 = Precision("float32")
BFLOAT16 = Precision("bfloat16")
AUTOCAST = Precision("float32", autocasts=True)


@dataclass(frozen=True)
class DtypeChoice:
    """What `dtype: auto` stands for in a run, and why."""

    precision: Precision
    reason: str
    step_cpu_s: Mapping[str, float] = field(default_factory=dict)
    """CPU seconds of a measured forward and backward, by precision."""

    @property
    def note(self) -> str:
        """One line for the user."""
        return f"dtype: {self.precision}, {self.reason}"

    def facts(self) -> dict[str, Any]:
        """Return the values for environment.json."""
        seconds = {"step_cpu_s": dict(self.step_cpu_s)}
        return {"auto": str(self.precision), "reason": self.reason, **seconds}


@dataclass(frozen=True)
class Candidates:
    """The precisions between which a measurement decides; a single one is decided already."""

    precisions: tuple[Precision, ...]
    reason: str = ""
    """Why there is a single one."""

    @property
    def decided(self) -> DtypeChoice | None:
        """The choice if no measurement is needed."""
        return DtypeChoice(self.precisions[0], self.reason) if len(self.precisions) == 1 else None

    def without_measuring(self) -> DtypeChoice:
        """Return the choice, or else the precision that takes the most memory."""
        later = "until training times it against the others, on this device, and takes the fastest"
        return self.decided or DtypeChoice(FLOAT32, later)


def candidates(recipe: Recipe, device: torch.device) -> Candidates:
    """Return the precisions that a device trains a recipe in at full quality.

    Args:
        recipe: A recipe with `dtype: auto`.
        device: The device of the run.

    Raises:
        MissingFileError, ConfigError: The base does not exist, or its configuration is damaged.
    """
    asked = next((key for key in ("bf16", "fp16") if recipe.training.get(key)), None)
    if asked is not None:
        return Candidates((SAVED,), f"because training.{asked} sets what products run in")
    options = loading_options(recipe)
    config = load_config(recipe.model, **options)
    if recipe.quantization is not None or is_quantized(config):
        reason = "because quantization.compute_dtype sets what products with the base run in"
        return Candidates((SAVED,), reason)
    if device.type not in ("cpu", "cuda"):
        return Candidates((SAVED,), f"because speeds on {device.type} are not known")
    if not has_dtype(torch.bfloat16, device):
        what = "CPU" if device.type == "cpu" else "GPU"
        return Candidates((FLOAT32,), f"because this {what} has no instructions for bfloat16")
    fast = BFLOAT16 if saved_dtype(config, recipe.model) == torch.bfloat16 else AUTOCAST
    if device.type == "cuda":
        return Candidates((fast,), "because this GPU multiplies bfloat16 fastest")
    if is_sharding_requested(recipe.training):
        return Candidates((fast,), "because this CPU multiplies bfloat16 fastest")
    base = build_skeleton(
        auto_model(recipe.task),
        config,
        recipe.model,
        trust_remote_code=options["trust_remote_code"],
    )
    count = sum(parameter.numel() for parameter in base.parameters())
    if count >= _LARGE_PARAMETERS:
        reason = f"because this CPU multiplies bfloat16 fastest, and {count:,} parameters are many"
        return Candidates((fast,), reason)
    return Candidates((FLOAT32, fast))


def fastest(step_cpu_s: Mapping[Precision, float]) -> DtypeChoice:
    """Return the choice after a measurement.

    Args:
        step_cpu_s: CPU seconds of a step, by precision; float32 and another one.
    """
    other = min((p for p in step_cpu_s if p != FLOAT32), key=lambda p: step_cpu_s[p])
    speed = step_cpu_s[FLOAT32] / step_cpu_s[other]
    seconds = {str(precision): round(s, 6) for precision, s in step_cpu_s.items()}
    if speed >= QUICKER:
        reason = f"{speed:.1f} times as fast as float32 on this machine"
        return DtypeChoice(other, reason, seconds)
    name = other if other.dtype != "float32" else "with products in bfloat16 it"
    reason = f"because {name} is {speed:.2f} times as fast on this machine, less than {QUICKER}"
    return DtypeChoice(FLOAT32, reason, seconds)
