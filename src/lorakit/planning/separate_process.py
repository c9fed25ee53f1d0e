"""Plan in a separate process, for processes that a launcher has started.

These have formed a process group: a trainer in one of them would communicate with the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING

from lorakit.files.atomic import scratch_directory
from lorakit.planning.memory_plan import MemoryPlan, plan

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe

_LAUNCHER_PREFIXES = (
    "ACCELERATE_",
    "FSDP_",
    "TORCHELASTIC_",
    "MASTER_",
    "GROUP_",
    "ROLE_",
    "LOCAL_",
)
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE")
_TIMEOUT_S = 300


def plan_in_separate_process(recipe: Recipe, processes: int) -> MemoryPlan | None:
    """Plan a recipe in a process without the environment of a launcher.

    Args:
        recipe: The recipe.
        processes: Number of processes that train together.

    Returns: The plan, or None if planning failed.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LAUNCHER_PREFIXES) and name not in _LAUNCHER_NAMES
    }
    with scratch_directory("lorakit-plan-") as scratch:
        path = scratch / "recipe.yaml"
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(path), str(processes)]
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=True,
            )
            values = json.loads(done.stdout.splitlines()[-1])
        except (subprocess.SubprocessError, IndexError, ValueError):
            return None
    known = {field.name for field in fields(MemoryPlan)}
    values["notes"] = tuple(values["notes"])
    return MemoryPlan(**{name: value for name, value in values.items() if name in known})


def _main(path: str, processes: str) -> None:
    made = plan(path, processes=int(processes), download=True)
    sys.stdout.write(json.dumps(made.to_dict()) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
