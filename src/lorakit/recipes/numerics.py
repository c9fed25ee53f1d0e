"""What the exact bits of a result depend on besides the recipe, and notes on changes to it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lorakit.libraries.torch_environment import spinning_note
from lorakit.ops.native import compiled_library
from lorakit.ops.weight_products import onednn_is_quicker

KEY = "numerics"
"""Key of the facts in environment.json."""

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "bitsandbytes")


def numerics_facts() -> dict[str, str]:
    """Return what determines the order of summation, by the name that users know."""
    unavailable = compiled_library.unavailable()
    return {
        "processor": _processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "compiled products": "on" if unavailable is None else f"off: {unavailable}",
        "float32 products": "oneDNN" if onednn_is_quicker() else "torch",
        **{name: package_version(name) or "none" for name in _PACKAGES},
    }


def note_changed_numerics(environment_file: Path) -> str | None:
    """Return a note if a run is resumed under other conditions than before, else None.

    Args:
        environment_file: The run's environment.json; an unreadable one gives no note.
    """
    try:
        before = json.loads(environment_file.read_text(encoding="utf-8"))[KEY]
        changes = differences(before, numerics_facts())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not changes:
        return None
    return (
        f"The result will differ in its last bits from that of a run that never stopped: "
        f"{', '.join(changes)}."
    )


def differences(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Return each fact that has changed, with its former value.

    >>> differences({"threads": "2", "torch": "2.13.0"}, {"threads": "1", "torch": "2.13.0"})
    ['threads 1 (was 2)']
    """
    return [
        f"{name} {value} (was {before[name]})"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def cpu_notes(device: torch.device) -> tuple[str, ...]:
    """Return notes on speed and exactness of this machine's CPU; none for a GPU."""
    if device.type != "cpu":
        return ()
    notes: list[str] = []
    unavailable = compiled_library.unavailable()
    if unavailable is not None:
        notes.append(
            f"The compiled low-rank products are off ({unavailable}): steps take longer, and "
            "results differ in their last bits from those of a machine that has them."
        )
    spinning = spinning_note() if torch.get_num_threads() > 1 else None
    return (*notes, spinning) if spinning else tuple(notes)


def _processor_name() -> str:
    lines = compiled_library.processor_lines("model name")
    names = (line.partition(":")[2].strip() for line in lines)
    return next(names, "") or platform.processor() or platform.machine()


@cache
def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
