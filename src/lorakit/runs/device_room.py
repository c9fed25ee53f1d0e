"""How much memory is free for a base, on the device that it is loaded on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lorakit.libraries.machine_memory import free_memory

_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/dri/renderD128")
"""Devices of NVIDIA's, AMD's, Windows' and Intel's drivers; one may be there without torch using
it."""


@dataclass(frozen=True)
class DeviceRoom:
    """Memory that is free.

    Attributes:
        device: Name of an accelerator; empty is the machine's own memory.
        free_bytes: Bytes that are free.
    """

    device: str
    free_bytes: int


def room_without_torch() -> DeviceRoom | None:
    """Return the memory of a machine that has no accelerator; None if only torch can know."""
    may_have_gpu = any(Path(name).exists() for name in _GPU_FILES) or shutil.which("nvidia-smi")
    return None if may_have_gpu else _cpu_room()


def device_room(device: str | None = None) -> DeviceRoom:
    """Return the memory of a device; it imports torch, and a GPU gets this process's context.

    Args:
        device: Such as "cpu" or "cuda"; None is the one that models are loaded on.
    """
    import torch

    from lorakit.quantization.devices import default_device

    place = torch.device(device) if device else default_device()
    if place.type != "cuda":  # others share the machine's memory
        return _cpu_room()
    return DeviceRoom(torch.cuda.get_device_name(place), torch.cuda.mem_get_info(place)[0])


def _cpu_room() -> DeviceRoom:
    return DeviceRoom("", free_memory())
