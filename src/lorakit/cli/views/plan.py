"""Print a memory plan: a bar for each purpose, the methods side by side, what would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lorakit.cli.views.console import (
    duration_text,
    heading,
    number_text,
    pairs,
    say,
    shell_quote,
    size_text,
    table,
)

if TYPE_CHECKING:
    from lorakit.planning import MemoryPlan
    from lorakit.planning.alternatives import Change
    from lorakit.planning.depths import DepthPlan
    from lorakit.planning.measurement import Measurement

_BAR_WIDTH = 40
_MAX_WIDTH = 100
_FEW_OVERRIDES = 2
"""A change with more overrides combines others, which list them."""


def show_plan(plan: MemoryPlan) -> None:
    """Print the contents of the peak, whether it fits, and the length of the run."""
    several = f", each of {plan.processes} processes" if plan.processes > 1 else ""
    heading(f"Memory at the peak of a step, on {plan.device}{several}")
    peak = max(plan.peak_bytes, 1)
    for purpose, size in plan.by_purpose.items():
        bar = "█" * max(round(_BAR_WIDTH * size / peak), 1)
        say(f"  {purpose:<18} {size_text(size):>9}  {bar}")
    say(f"  {'total':<18} {size_text(plan.peak_bytes):>9}  at {plan.peak_place}")
    say(f"  {'the process':<18} {size_text(plan.process_bytes):>9}  Python and its libraries")
    say()
    say(plan.verdict, style="bold" if plan.fits is False else None)
    heading("The run")
    rows, tokens = plan.batch_rows, plan.batch_tokens
    pairs(
        {
            "batch": f"{rows} x {tokens} tokens. {' '.join(plan.notes)}",
            "parameters": f"{plan.trainable:,} trained of {plan.total:,}",
            "adapter file": size_text(plan.adapter_file_bytes),
            "optimizer steps": _steps_text(plan),
            "epochs": None if plan.epochs is None else number_text(plan.epochs),
            "tokens": None if plan.tokens is None else number_text(plan.tokens),
        }
    )


def _steps_text(plan: MemoryPlan) -> str | None:
    """Return the number of optimizer steps, and of micro-batches in each."""
    if plan.updates is None or plan.batches is None:
        return None
    each = plan.batches // max(plan.updates, 1)
    several = f", each of {each} micro-batches" if each > 1 else ""
    return f"{number_text(plan.updates)}{several}"


def summary(plan: MemoryPlan) -> str:
    """Return a plan in one line."""
    there = "" if plan.memory_bytes is None else f" of {size_text(plan.memory_bytes)}"
    return (
        f"Planned: {size_text(plan.needed_bytes)}{there} at the peak"
        f" ({size_text(plan.at_peak.get('base weights', 0))} base, "
        f"{size_text(plan.saved_activation_bytes)} activations), "
        f"adapter {size_text(plan.adapter_file_bytes)}"
    )


def show_methods(plans: Mapping[str, MemoryPlan]) -> None:
    """Print the training methods side by side."""
    heading("Side by side")
    values = {
        "trained": [f"{plan.trainable:,}" for plan in plans.values()],
        "weights": [
            size_text(plan.base_weights_bytes + plan.adapter_bytes) for plan in plans.values()
        ],
        "gradients": [size_text(plan.gradient_bytes) for plan in plans.values()],
        "optimizer": [size_text(plan.optimizer_bytes) for plan in plans.values()],
        "activations": [size_text(plan.saved_activation_bytes) for plan in plans.values()],
        "peak": [size_text(plan.peak_bytes) for plan in plans.values()],
        "saved": [size_text(plan.adapter_file_bytes) for plan in plans.values()],
        "fits": [{True: "yes", False: "no", None: "?"}[plan.fits] for plan in plans.values()],
    }
    table(("", *plans), [(name, *cells) for name, cells in values.items()], max_width=_MAX_WIDTH)


def show_depths(plans: Mapping[str, DepthPlan], cache_bytes: int) -> None:
    """Print what adapting the upper layers alone costs; nothing for no plans."""
    if not plans:
        return
    heading("Adapting the upper layers alone")
    table(
        ("layers", "first epoch", "later epochs", "memory", "kept on disk"),
        [
            (
                f"{name} ({made.layers})",
                f"{made.first_epoch:.2f}",
                f"{made.later_epoch:.2f}",
                size_text(made.needed_bytes),
                "?" if made.cache_bytes is None else size_text(made.cache_bytes),
            )
            for name, made in plans.items()
        ],
        max_width=_MAX_WIDTH,
    )
    say("  Epochs: shares of the work of an epoch that adapts all layers, by counted products.")
    say("  lora.layers_to_transform chooses the layers.")
    if any((made.cache_bytes or 0) > cache_bytes for made in plans.values()):
        size = size_text(cache_bytes)
        say(f"  Not everything is kept: frozen_part.cache_bytes is {size}.")


def show_changes(changes: Sequence[Change]) -> None:
    """Print changes that would make a run fit, and how much each saves."""
    heading("What would save memory")
    if not changes:
        say("  No change that lorakit knows. Choose a smaller model.")
        return
    table(
        ("change", "saves", "then needs", "fits"),
        [
            (
                change.name,
                size_text(change.saves_bytes),
                size_text(change.plan.needed_bytes),
                "yes" if change.plan.fits else "no",
            )
            for change in changes
        ],
        max_width=_MAX_WIDTH,
    )
    for change in changes:
        if len(change.overrides) <= _FEW_OVERRIDES:
            say(f"  {change.name}: {' '.join(map(shell_quote, change.overrides))}")


def show_measurement(found: Measurement, plan: MemoryPlan) -> None:
    """Print the time and memory of real steps, compared with the plan."""
    heading("Measured")
    share = found.memory.peak_bytes / max(plan.peak_bytes, 1) - 1
    size = size_text(found.memory.peak_bytes)
    pairs(
        {
            "a step": duration_text(found.step_s),
            "the run": f"about {duration_text(found.run_s)}, evaluations not included",
            "tensors at the peak": f"{size} ({share:+.1%} of the plan)",
        }
    )
