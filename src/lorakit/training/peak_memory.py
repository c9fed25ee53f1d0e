"""The most memory that a run has taken, as the system counts it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"
"""What Linux takes for: let the peak of this process begin anew."""


class PeakMemory:
    """Watches from its making on; on a GPU what torch has given out, else the process."""

    def __init__(self, on_gpu: bool):
        self._on_gpu = on_gpu
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return
        with suppress(OSError):  # else the peak is that since the process began
            _CLEAR.write_text(_FORGET_PEAK, encoding="utf-8")

    def read(self) -> int | None:
        """Return the peak in bytes; None where the system does not tell."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated()
        return _resident_peak()

    @property
    def meaning(self) -> str:
        """What is counted."""
        return "allocated on the GPU" if self._on_gpu else "resident memory of the process"


def _resident_peak() -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
