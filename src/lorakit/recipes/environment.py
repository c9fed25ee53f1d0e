"""What a run is computed with: versions, machine and commit."""

import os
import platform
import subprocess
import sys
from typing import Any

_PACKAGES = (
    "lorakit",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "safetensors",
    "numpy",
    "scikit-learn",
)


def environment_facts() -> dict[str, Any]:
    """Return what is needed to reproduce a run: versions, machine and commit.

    `processes` is 1; a run of several processes overrides it.
    """
    from lorakit.recipes.numerics import KEY, numerics_facts, package_version  # imports torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "processes": 1,
        "accelerator": _accelerator(),
        "command": sys.argv,
        "git_commit": _git_commit(),
        KEY: numerics_facts(),
        "versions": {name: package_version(name) for name in _PACKAGES},
    }


def _accelerator() -> str | None:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if device is None else device.type


def _git_commit() -> str | None:
    """Return the commit of the working directory's repository, or None outside a repository."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
