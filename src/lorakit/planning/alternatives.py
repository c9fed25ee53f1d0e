"""Other ways to train the same recipe: their memory, and which of them would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorakit.errors import LorakitError
from lorakit.planning.memory_plan import MemoryPlan, plan
from lorakit.recipes.training_section import OPTIMIZER_NAME

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe

_LEAST_TOKENS = 32
"""Shortest length to which examples may be proposed to be cut."""


@dataclass(frozen=True)
class Change:
    """A change of the recipe that saves memory."""

    name: str
    values: Mapping[str, Any]
    """Values by dotted recipe key."""
    plan: MemoryPlan
    saves_bytes: int
    """Reduction of the peak."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides for the command line."""
        return tuple(f"{key}={_override_text(value)}" for key, value in self.values.items())


def side_by_side(recipe: Recipe, unchanged: MemoryPlan, **options: Any) -> dict[str, MemoryPlan]:
    """Plan a recipe with each training method.

    Args:
        recipe: The recipe.
        unchanged: Plan of the unchanged recipe.
        options: Options of `plan`.

    Returns: Plans of "full fine-tuning", "LoRA" and "QLoRA". The base of LoRA has its saved dtype,
        that of QLoRA is NF4 with double quantization unless the recipe says otherwise. A method
        that the model does not support is omitted.
    """
    is_quantized = recipe.quantization is not None
    lora = _with(recipe, {"quantization": None}) if is_quantized else recipe
    qlora = recipe if is_quantized else _with(recipe, {"quantization": {"bits": 4}})
    wanted = {
        "full fine-tuning": lambda: plan(lora, method="full", **options),
        "LoRA": lambda: plan(lora, **options) if is_quantized else unchanged,
        "QLoRA": lambda: unchanged if is_quantized else plan(qlora, **options),
    }
    plans = {}
    for name, make in wanted.items():
        try:
            made = make()
        except LorakitError:  # such as layers that cannot be cut into blocks
            continue
        plans[name] = (
            made if made is unchanged else replace(made, process_bytes=unchanged.process_bytes)
        )
    return plans


def changes(recipe: Recipe, unchanged: MemoryPlan, **options: Any) -> list[Change]:
    """Plan changes that save memory, each alone and then all of them together.

    Args:
        recipe: The recipe.
        unchanged: Plan of the unchanged recipe.
        options: Options of `plan`.

    Returns: Changes that save memory, the largest saving first and "all of these" last.
    """
    found = []
    for name, overrides in _candidates(recipe, unchanged):
        change = _plan_change(recipe, unchanged, name, overrides, options)
        if change is not None:
            found.append(change)
    found.sort(key=lambda change: change.saves_bytes, reverse=True)
    if len(found) > 1:
        every = {key: value for change in found for key, value in change.values.items()}
        together = _plan_change(recipe, unchanged, "all of these", every, options)
        found += [] if together is None else [together]
    return found


def _candidates(recipe: Recipe, unchanged: MemoryPlan) -> Iterator[tuple[str, dict[str, Any]]]:
    training = recipe.training
    batch = unchanged.batch_rows
    if batch > 1:
        accumulated = int(training.get("gradient_accumulation_steps", 1)) * batch
        yield (
            "one example at a time, accumulated",
            {
                "training.per_device_train_batch_size": 1,
                "training.gradient_accumulation_steps": accumulated,
            },
        )
    if not training.get("activation_checkpointing", training.get("gradient_checkpointing")):
        yield "activation checkpointing", {"training.activation_checkpointing": True}
    if recipe.quantization is None or recipe.quantization.bits == 8:
        yield "a base in 4 bits", {"quantization.bits": 4}
    optimizer = OPTIMIZER_NAME if unchanged.device == "cpu" else "paged_adamw_32bit"
    if training.get("optim") != optimizer and not str(training.get("optim")).startswith("paged"):
        yield "an optimizer state outside of this memory", {"training.optim": optimizer}
    if unchanged.batch_tokens >= 2 * _LEAST_TOKENS:
        yield "examples half as long", {"data.max_length": unchanged.batch_tokens // 2}


def _plan_change(
    recipe: Recipe,
    unchanged: MemoryPlan,
    name: str,
    values: dict[str, Any],
    options: dict[str, Any],
) -> Change | None:
    try:
        made = plan(_with(recipe, values), **options)
        # Planning itself takes memory: the process is counted as before planning.
        made = replace(made, process_bytes=unchanged.process_bytes)
    except LorakitError:
        return None
    saves = unchanged.peak_bytes - made.peak_bytes
    return Change(name, values, made, saves) if saves > 0 else None


def _with(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    return recipe.with_changes(values, "the plan")


def _override_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
