"""Whether a recipe fits into memory, and what would make it fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorakit.recipes.recipe import Recipe


@dataclass(frozen=True)
class Remedy:
    """A change of the recipe that saves memory."""

    name: str
    values: Mapping[str, Any]
    """New values by dotted recipe key."""
    saves_bytes: int
    needed_bytes: int
    fits: bool | None


@dataclass(frozen=True)
class MemoryAnswer:
    """The result of `memory_of`: what `lorakit plan` prints, without its libraries' types."""

    verdict: str
    fits: bool | None
    by_purpose: Mapping[str, int]
    """Bytes at the peak of a step, and those of the process itself."""
    needed_bytes: int
    memory_bytes: int | None
    device: str
    trainable: int
    total: int
    adapter_file_bytes: int
    batch_rows: int
    batch_tokens: int
    updates: int | None
    tokens: int | None
    notes: tuple[str, ...]
    remedies: tuple[Remedy, ...]
    """The largest saving first, all together last; none were looked for if the run fits."""


def memory_of(recipe: Recipe, *, memory: str | None = None, remedies: bool = False) -> MemoryAnswer:
    """Plan a recipe, and changes that save memory if it does not fit.

    Args:
        recipe: The recipe.
        memory: Memory of the device, such as "16GB"; None detects it.
        remedies: Whether to plan the changes also if it fits.

    Raises:
        PlanError, ConfigError, MissingFileError, DataError, TargetError, QuantizationError: As
            `plan` raises.
    """
    from lorakit.planning import find_sources, plan
    from lorakit.planning.alternatives import changes
    from lorakit.training.tasks import task_of

    options: dict[str, Any] = {
        "memory": memory,
        "sources": find_sources(recipe, task_of(recipe)),
    }
    planned = plan(recipe, **options)
    wanted = remedies or planned.fits is False
    found = changes(recipe, planned, **options) if wanted else []
    return MemoryAnswer(
        verdict=planned.verdict,
        fits=planned.fits,
        by_purpose={**planned.by_purpose, "Python and its libraries": planned.process_bytes},
        needed_bytes=planned.needed_bytes,
        memory_bytes=planned.memory_bytes,
        device=planned.device,
        trainable=planned.trainable,
        total=planned.total,
        adapter_file_bytes=planned.adapter_file_bytes,
        batch_rows=planned.batch_rows,
        batch_tokens=planned.batch_tokens,
        updates=planned.updates,
        tokens=planned.tokens,
        notes=planned.notes,
        remedies=tuple(
            Remedy(
                *(change.name, dict(change.values), change.saves_bytes),
                *(change.plan.needed_bytes, change.plan.fits),
            )
            for change in found
        ),
    )
