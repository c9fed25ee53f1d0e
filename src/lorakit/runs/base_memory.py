"""How much memory a base takes, from the headers of its files alone; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lorakit.errors import ConfigError
from lorakit.libraries.hub import is_hub_id
from lorakit.runs.adapters import StoredTensor, read_tensor_header

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_QUANTIZED_BYTES = {4: 0.5 + 4 / 64, 8: 1.0}
"""Bytes of a quantized weight with its share of the scales: a float32 for 64 weights of 4 bits."""

_KEPT_DENSE = ("embed", "lm_head", "wte", "wpe", "shared", "score", "classifier")
"""Parts of names of matrices that quantization leaves as they are."""

_GB = 1e9


def base_bytes(base: str, dtype: str | None = None, bits: int | None = None) -> int | None:
    """Return about how many bytes the weights of a base take in memory.

    Args:
        base: Its directory, or a hub id that has been fetched before.
        dtype: dtype to load it in; None, or another word, is that of its files.
        bits: Bits of its linear layers if it is quantized.

    Returns: The bytes; None if no file of its weights is on this machine, or none can be read.
    """
    folder = _folder(base)
    if folder is None:
        return None
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


def _folder(base: str) -> Path | None:
    if Path(base).is_dir():
        return Path(base)
    if not is_hub_id(base, is_base=True):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(base, "config.json")
    return Path(found).parent if isinstance(found, str) else None


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
