"""Detect the memory of a device, and parse amounts of memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lorakit.config.problems import short_repr
from lorakit.errors import ConfigError

if TYPE_CHECKING:
    import torch

_UNITS = {
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
    "b": 1,
}
_SIZE = re.compile(r"([0-9]+(?:[.][0-9]+)?)\s*([a-z]*)")
_MOST_BYTES = 1e18
_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def parse_memory(text: str) -> int:
    """Parse an amount of memory.

    >>> parse_memory("16GB"), parse_memory("1.5 GiB"), parse_memory("800mb")
    (16000000000, 1610612736, 800000000)

    Raises:
        ConfigError: The text is not an amount of memory.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    unit = found.group(2) if found else ""
    unit = f"{unit}b" if f"{unit}b" in _UNITS and unit else unit
    size = float(found.group(1)) if found else 0.0
    if unit not in _UNITS or not 0 < size * _UNITS[unit] < _MOST_BYTES:
        meant = f" Did you mean {found.group(1)}GB?" if found and not unit and size else ""
        raise ConfigError(
            f"Cannot read the memory: got {short_repr(text)}, expected a number and a unit such as "
            f"16GB, 24 GiB or 800MB.{meant}"
        )
    return int(size * _UNITS[unit])


def device_memory(device: torch.device) -> int | None:
    """Return the total bytes of a device or the limit of a container; None if unknown."""
    if device.type == "cuda":
        return _gpu_memory(device)
    return cpu_memory() if device.type == "cpu" else None


def cpu_memory() -> int:
    """Return the bytes of this machine's memory, or the limit of its container."""
    limits = [limit for limit in map(_cgroup_limit, _CGROUP_LIMITS) if limit is not None]
    return min([*limits, psutil.virtual_memory().total])


def process_bytes() -> int:
    """Return the resident memory of this process: before a model, Python and its libraries.

    Linux counts pages of the libraries' files for a fork only once it has touched them; such a
    process gets those of the program that it is a fork of.
    """
    here = psutil.Process()
    memory = here.memory_info()
    shared = getattr(memory, "shared", None)  # Linux alone tells
    if shared is None:
        return memory.rss
    try:
        parent = here.parent()
        is_fork = parent is not None and parent.exe() == here.exe()
        of_parent = parent.memory_info().shared if parent is not None and is_fork else 0
    except psutil.Error:  # it has just ended, or belongs to another user
        of_parent = 0
    return memory.rss - shared + max(shared, of_parent)


def _gpu_memory(device: torch.device) -> int | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(device).total_memory


def _cgroup_limit(name: str) -> int | None:
    path = Path("/sys/fs/cgroup") / name
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None
