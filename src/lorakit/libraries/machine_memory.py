"""Memory of this machine, its devices and this process."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
_SCARCE_SHARE = 0.25
"""Share of the memory below which what is free is little."""


def device_memory(device: torch.device) -> int | None:
    """Return the total bytes of a device or the limit of a container; None if unknown."""
    if device.type == "cuda":
        return _gpu_memory(device)
    return cpu_memory() if device.type == "cpu" else None


def cpu_memory() -> int:
    """Return the bytes of this machine's memory, or the limit of its container."""
    limits = [limit for limit in map(_cgroup_limit, _CGROUP_LIMITS) if limit is not None]
    return min([*limits, psutil.virtual_memory().total])


def free_memory() -> int:
    """Return the bytes that this process may still take: free here and within its container."""
    return min(psutil.virtual_memory().available, max(0, cpu_memory() - process_bytes()))


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


def return_freed_memory() -> None:
    """Give memory that threads have freed back to the system, where little is left.

    glibc has a heap for each thread, which keeps what the thread has freed while others need more.
    Taking it again costs a pass over a large batch some per cent, so it stays while there is room.
    """
    if free_memory() < _SCARCE_SHARE * cpu_memory():
        with suppress(OSError, AttributeError):  # another malloc than glibc's
            ctypes.CDLL(None).malloc_trim(0)


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
