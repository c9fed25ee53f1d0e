"""Measure the peak memory of a run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"
"""The value that makes Linux reset the peak of this process."""


class PeakMemory:
    """The peak since construction: memory that torch allocated on a GPU, else resident memory."""

    def __init__(self, on_gpu: bool):
        self._on_gpu = on_gpu
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return
        with suppress(OSError):  # else it is the peak since the process started
            _CLEAR.write_text(_FORGET_PEAK, encoding="utf-8")

    def read(self) -> int | None:
        """Return the peak in bytes, or None if the system does not report it."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated()
        return _resident_peak()

    @property
    def meaning(self) -> str:
        """What is measured, in words."""
        return "allocated on the GPU" if self._on_gpu else "resident memory of the process"


def _resident_peak() -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
