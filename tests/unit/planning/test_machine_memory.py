import torch

from lorakit.planning import machine_memory
from lorakit.planning.machine_memory import device_memory, process_bytes


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


def test_nothing_is_known_of_a_device_that_is_not_here():
    if not torch.cuda.is_available():
        assert device_memory(torch.device("cuda")) is None
    assert device_memory(torch.device("meta")) is None
