"""The peak of a process since a moment."""

import platform

import pytest
import torch

from lorakit.training import peak_memory
from lorakit.training.peak_memory import PeakMemory


def test_the_peak_is_that_of_the_systems_report_in_bytes(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 99 kB\nVmHWM:\t   12 kB\nVmRSS:\t 7 kB\n")
    monkeypatch.setattr(peak_memory, "_STATUS", status)
    monkeypatch.setattr(peak_memory, "_CLEAR", tmp_path / "no" / "clear_refs")
    peak = PeakMemory(on_gpu=False)  # a system that cannot reset the peak
    assert peak.read() == 12 * 1024
    assert peak.meaning == "resident memory of the process"
    status.write_text("Name:\tpython\n")
    assert peak.read() is None
    status.unlink()
    assert peak.read() is None


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux reports resident peaks")
def test_memory_that_was_freed_is_in_the_peak_and_what_came_before_is_not():
    size = 64 << 20
    before = PeakMemory(on_gpu=False)
    start = before.read()
    torch.ones(size, dtype=torch.uint8)
    grown = before.read()
    assert grown >= start + 0.9 * size
    assert PeakMemory(on_gpu=False).read() <= grown - 0.5 * size


def test_on_a_gpu_it_is_what_torch_allocated(monkeypatch):
    resets = []
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: resets.append(1))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 123)
    peak = PeakMemory(on_gpu=True)
    assert (resets, peak.read(), peak.meaning) == ([1], 123, "allocated on the GPU")
