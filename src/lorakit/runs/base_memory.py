"""How much memory a base takes, by the headers of its files alone, and how much is free."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import ConfigError
from lorakit.libraries.machine_memory import free_memory
from lorakit.runs.adapters import StoredTensor, read_tensor_header

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_QUANTIZED_BYTES = {4: 0.5 + 4 / 64, 8: 1.0}
"""Bytes of a quantized weight with its share of the scales: a float32 for 64 weights of 4 bits."""

_KEPT_DENSE = ("embed", "lm_head", "wte", "wpe", "shared", "score", "classifier")
"""Parts of names of matrices that quantization leaves as they are."""

_GB = 1e9

_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/dri/renderD128")
"""Devices of NVIDIA's, AMD's, Windows' and Intel's drivers; one may be there without torch using
it."""


def base_bytes(base: str, dtype: str | None = None, bits: int | None = None) -> int | None:
    """Return about how many bytes the weights of a base take in memory.

    Args:
        base: Its directory, or a hub id that has been fetched before.
        dtype: dtype to load it in; None, or another word, is that of its files.
        bits: Bits of its linear layers if it is quantized.

    Returns: The bytes; None if no file of its weights is on this machine, or none can be read.
    """
    config_file = config_file_of(base)
    if config_file is None:
        return None
    folder = config_file.parent
    files = sorted(folder.glob("*.safetensors"))
    try:
        if not files:  # pickles have no header that tells
            return sum(file.stat().st_size for file in folder.glob("*.bin")) or None
        headers = [read_tensor_header(file) for file in files]
    except (OSError, ValueError):  # loading will say what is wrong
        return None
    size = _DTYPE_BYTES.get(dtype or "")
    return round(sum(_bytes(header, size, bits) for header in headers))


def _bytes(tensors: Mapping[str, StoredTensor], size: int | None, bits: int | None) -> float:
    total = 0.0
    for name, one in tensors.items():
        is_matrix = len(one.shape) == 2 and not any(part in name for part in _KEPT_DENSE)
        if bits is not None and is_matrix:
            total += one.elements * _QUANTIZED_BYTES.get(bits, 2.0)
        else:
            total += one.bytes if size is None else one.elements * size
    return total


def config_file_of(model: str) -> Path | None:
    """Return a model's config.json on this machine, or None; nothing is downloaded."""
    if Path(model).is_dir():
        return Path(model) / "config.json"
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


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


def require_room(base: str, needed_bytes: int | None, free_bytes: int | None) -> None:
    """Refuse a base that does not fit into memory; what is unknown passes.

    Raises:
        ConfigError: It does not fit.
    """
    if needed_bytes is None or free_bytes is None or needed_bytes <= free_bytes:
        return
    raise ConfigError(
        f"Cannot load the base '{base}': got {gigabytes(free_bytes)} of free memory, expected at "
        f"least {gigabytes(needed_bytes)}, which its weights take. End other programs, or choose a "
        "smaller base, or an adapter that was trained in 4 bits."
    )


def gigabytes(count: int) -> str:
    """Return a number of bytes in GB or MB.

    >>> gigabytes(14_900_000_000), gigabytes(538_000_000), gigabytes(90_000)
    ('14.9 GB', '538 MB', '0.09 MB')
    """
    if count >= _GB:
        return f"{count / _GB:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e6:.2g} MB"
