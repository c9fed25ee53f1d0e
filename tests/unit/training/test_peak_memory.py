"""The peak of a process since a moment."""

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


def test_the_peak_starts_again_where_the_system_can_reset_it(tmp_path, monkeypatch):
    monkeypatch.setattr(peak_memory, "_CLEAR", tmp_path / "clear_refs")
    PeakMemory(on_gpu=False)
    assert (tmp_path / "clear_refs").read_text() == "5"  # proc(5): the value that resets VmHWM


def test_on_a_gpu_it_is_what_torch_allocated(monkeypatch):
    resets = []
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: resets.append(1))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 123)
    peak = PeakMemory(on_gpu=True)
    assert (resets, peak.read(), peak.meaning) == ([1], 123, "allocated on the GPU")
