"""The memory that is free for a base."""

import psutil
import torch

from lorakit.runs import device_room as rooms
from lorakit.runs.device_room import DeviceRoom, device_room, room_without_torch


def test_without_an_accelerator_the_memory_of_the_machine_counts(monkeypatch):
    monkeypatch.setattr(rooms, "_GPU_FILES", ())
    monkeypatch.setattr(rooms.shutil, "which", lambda name: None)
    room = room_without_torch()
    assert room.device == "" and 0 < room.free_bytes <= psutil.virtual_memory().total


def test_the_processor_has_what_is_free_of_the_machine(monkeypatch):
    monkeypatch.setattr(rooms, "free_memory", lambda: 1000)
    assert device_room("cpu") == DeviceRoom("", 1000)


def test_where_there_may_be_a_gpu_torch_is_asked_for_its_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(rooms, "_GPU_FILES", (str(tmp_path),))
    assert room_without_torch() is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "Some GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (7, 9))
    assert device_room("cuda") == DeviceRoom("Some GPU", 7)
