import os
from types import SimpleNamespace

import psutil
import pytest
import torch

from lorakit.libraries import machine_memory
from lorakit.libraries.machine_memory import device_memory, free_memory, process_bytes


def test_this_machine_has_memory_and_this_process_takes_some_of_it():
    total = device_memory(torch.device("cpu"))
    assert total is not None
    assert 0 < process_bytes() < total


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("123456789\n")
    monkeypatch.setattr(machine_memory, "_CGROUP_LIMITS", (str(limit),))
    assert device_memory(torch.device("cpu")) == 123456789
    limit.write_text("max\n")
    assert device_memory(torch.device("cpu")) != 123456789


def test_what_is_free_is_what_the_process_may_still_take(monkeypatch):
    assert 0 < free_memory() <= psutil.virtual_memory().total
    monkeypatch.setattr(machine_memory, "cpu_memory", lambda: 10_000)  # a container's limit
    monkeypatch.setattr(machine_memory, "process_bytes", lambda: 4000)
    assert free_memory() == 6000
    monkeypatch.setattr(machine_memory, "process_bytes", lambda: 16_000)
    assert free_memory() == 0


def test_nothing_is_known_of_a_device_that_is_not_here():
    if not torch.cuda.is_available():
        assert device_memory(torch.device("cuda")) is None
    assert device_memory(torch.device("meta")) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
def test_a_fork_counts_the_libraries_that_its_parent_has_loaded():
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.write(sending, f"{process_bytes()} {psutil.Process().memory_info().rss}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    counted, resident = map(int, os.read(receiving, 99).split())
    here = psutil.Process().memory_info()
    assert resident <= counted  # Linux leaves out what is in files
    assert counted == pytest.approx(here.rss, rel=0.05)


def test_freed_memory_is_returned_where_little_is_left(monkeypatch):
    asked = []
    library = SimpleNamespace(malloc_trim=asked.append)
    monkeypatch.setattr(machine_memory.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(machine_memory, "cpu_memory", lambda: 100)
    for free in (26, 24):
        monkeypatch.setattr(machine_memory, "free_memory", lambda free=free: free)
        machine_memory.return_freed_memory()
    assert asked == [0]
    monkeypatch.setattr(machine_memory.ctypes, "CDLL", lambda name: SimpleNamespace())
    machine_memory.return_freed_memory()
