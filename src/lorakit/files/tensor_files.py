"""Safetensors files: strict reading through one descriptor, reproducible writing, usable numbers.

Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from lorakit.files.json_files import (
    POINTER_BYTES,
    parse_json_object,
    require_no_pointer,
    short_repr,
)

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
"""Limit of the format."""

_MOST_ELEMENTS = 2**62
_MOST_DIMENSIONS = 16
MOST_NAME_CHARACTERS = 1000
"""Limit on a tensor's name, which is a path in a model."""

LARGEST_WEIGHT = 1e10
"""Usable weights are below 1e3; from here on a product of two factors may overflow."""

_METADATA = "__metadata__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class FileChangedError(Exception):
    """A file changed while it was read."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's bytes, from `begin` to `end`, relative to the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements of the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """Contents of a safetensors file.

    Attributes:
        tensors: CPU tensors by name, each in separate memory.
        metadata: Strings by name.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_safetensors(path: Path) -> TensorFile:
    """Read a whole safetensors file.

    The file is opened once, so a file that is replaced meanwhile is still read to its end.

    Raises:
        ValueError: The file is damaged; the message is a phrase that says where.
        FileChangedError: The file changed while it was read.
        OSError: The file cannot be read.
    """
    with _opening(path) as descriptor:
        before = os.fstat(descriptor)
        entries, metadata, start = _header(descriptor, before.st_size)
        _require_memory(before.st_size)
        tensors = {name: _tensor(descriptor, name, entry, start) for name, entry in entries.items()}
        after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FileChangedError(str(path))
    return TensorFile(tensors, metadata)


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """Read the header of a safetensors file: dtype, shape and place of each tensor by name.

    Raises:
        ValueError: The header is damaged, or does not agree with the file's size; the message is a
            phrase that says where.
        OSError: The file cannot be read.
    """
    with _opening(path) as descriptor:
        entries, _, _ = _header(descriptor, os.fstat(descriptor).st_size)
    return entries


def has_usable_numbers(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are below `LARGEST_WEIGHT`; NaN is not."""
    if not tensor.is_floating_point():
        return True
    return bool((tensor.abs() < LARGEST_WEIGHT).all()) if tensor.numel() else True


def has_unusable_numbers(path: Path) -> bool:
    """Return whether a safetensors file holds a tensor with unusable numbers."""
    return not all(map(has_usable_numbers, read_safetensors(path).tensors.values()))


@contextmanager
def _opening(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _header(descriptor: int, size: int) -> tuple[dict[str, TensorEntry], dict[str, str], int]:
    """Return the entries, the metadata, and the offset of the tensors' bytes."""
    if size == 0:
        raise ValueError("it is empty")
    beginning = os.pread(descriptor, _LENGTH_BYTES, 0)
    require_no_pointer(os.pread(descriptor, POINTER_BYTES, 0))
    length = int.from_bytes(beginning, "little")
    start = _LENGTH_BYTES + length
    if size < start:
        raise ValueError(f"it has {size:,} bytes, and its header would take {start:,}")
    if length > _MOST_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, more than {_MOST_HEADER_BYTES:,}")
    values = parse_json_object(os.pread(descriptor, length, _LENGTH_BYTES))
    metadata = values.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{_METADATA} in its header is not an object of strings")
    entries = {name: _entry(name, value, size - start) for name, value in values.items()}
    _require_gapless(entries, size - start)
    return entries, metadata, start


def _entry(name: str, value: Any, data_bytes: int) -> TensorEntry:
    """Parse the header's entry of one tensor."""
    if len(name) > MOST_NAME_CHARACTERS:
        raise ValueError(
            f"{short_repr(name)} has {len(name):,} characters, too many for a tensor's name"
        )
    if not isinstance(value, dict) or value.keys() != _ENTRY_KEYS:
        raise ValueError(
            f"its header has {short_repr(name)} without exactly dtype, shape and data_offsets"
        )
    dtype = _DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        got = short_repr(str(value["dtype"]))
        raise ValueError(
            f"{short_repr(name)} is of dtype {got}, which is not one of {', '.join(_DTYPES)}"
        )
    shape, offsets = value["shape"], value["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(
            f"{short_repr(name)} has a shape or offsets that are not whole numbers from 0"
        )
    # Zeros count as ones, so that the other sizes are bounded too.
    elements = math.prod([n or 1 for n in shape[:_MOST_DIMENSIONS]])
    if len(shape) > _MOST_DIMENSIONS or elements > _MOST_ELEMENTS:
        raise ValueError(f"{short_repr(name)} has an impossible shape: {short_repr(str(shape))}")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise ValueError(f"{short_repr(name)} does not lie inside the file")
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise ValueError(
            f"{short_repr(name)} has {end - begin:,} bytes, but its dtype {value['dtype']} and "
            f"shape {shape} need {needed:,}"
        )
    return TensorEntry(dtype, tuple(shape), begin, end)


def _are_counts(values: Any) -> bool:
    # A list is quicker than a generator, and a header has thousands of these.
    return isinstance(values, list) and all([type(n) is int and n >= 0 for n in values])


def _require_gapless(entries: dict[str, TensorEntry], data_bytes: int) -> None:
    """Reject tensors that overlap, leave bytes unused or extend beyond the end."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            what = "overlaps another tensor" if entry.begin < end else "comes after unused bytes"
            raise ValueError(f"{short_repr(name)} {what}")
        end = entry.end
    if end != data_bytes:
        raise ValueError(f"its tensors take {end:,} bytes, and it has {data_bytes:,} for them")


def _require_memory(size: int) -> None:
    available = psutil.virtual_memory().available
    if size > available:
        raise ValueError(
            f"it has {size:,} bytes, and {available:,} bytes of memory are free on this machine"
        )


def _tensor(descriptor: int, name: str, entry: TensorEntry, start: int) -> Tensor:
    try:
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
    except RuntimeError:
        raise ValueError(f"{short_repr(name)} does not fit in memory") from None
    if entry.end == entry.begin:
        return tensor
    place = _bytes_of(tensor)
    at = start + entry.begin
    while len(place):
        count = os.preadv(descriptor, [place], at)
        if count == 0:
            raise ValueError(f"it ends inside {short_repr(name)}")
        place, at = place[count:], at + count
    return tensor


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file; the same tensors and metadata give the same bytes.

    The writer of the safetensors package orders metadata differently in each process.

    Args:
        path: The file; an existing one is overwritten.
        tensors: Contiguous CPU tensors by name.
        metadata: Strings by name.
    """
    header = _header_text(tensors, metadata)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
        for name in _in_order(tensors):
            if tensors[name].numel():
                file.write(_bytes_of(tensors[name]))


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Return the size of the file that `write_safetensors` would write.

    Args:
        tensors: Tensors by name; fake ones suffice, as only shapes and dtypes count.
        metadata: Strings by name.
    """
    numbers = sum(tensor.nbytes for tensor in tensors.values())
    return _LENGTH_BYTES + len(_header_text(tensors, metadata)) + numbers


def _in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names, wider dtypes first, so that every tensor is aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))


def _header_text(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    end = 0
    for name in _in_order(tensors):
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return text + b" " * (-len(text) % _LENGTH_BYTES)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous, non-empty tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data
