"""Digests of files, folders and checkpoints, which tell whether two have the same content."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from lorakit.files.tensor_files import TensorEntry, read_entries

_SAMPLE = 256
"""Number of values at either end of a tensor that a digest of weights includes."""
_LENGTH_BYTES = 8


_known: dict[tuple[int, ...], str] = {}
"""Digests that this process has computed, by the state of the file."""
_SETTLED_NS = 1_000_000_000
"""A file that changed less than this before it was read may change again at the same time stamp."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, as `sha256sum` prints it.

    A file whose state has not changed is read once by a process: the time of its last change of
    content or status, which programs cannot set, is a part of the state.
    """
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if state not in _known:
            began_ns = time.time_ns()
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if began_ns - found.st_ctime_ns < _SETTLED_NS:
                return digest
            _known[state] = digest
        return _known[state]


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files in a folder."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def weights_digest(files: Iterable[Path]) -> str | None:
    """Return a digest of the weights in safetensors files.

    It includes the name and shape of every tensor and the values at both ends, in bfloat16: it is
    read in milliseconds, and a checkpoint keeps it when it is saved in bfloat16 or in other files.

    Args:
        files: The files of one checkpoint.

    Returns: None if there are no files.

    Raises:
        ValueError: A file is damaged.
        OSError: A file cannot be read.
    """
    found = {name: (file, entry) for file in files for name, entry in read_entries(file).items()}
    if not found:
        return None
    digest = hashlib.sha256()
    for name, (file, entry) in sorted(found.items()):
        digest.update(f"{name} {entry.shape} ".encode())
        digest.update(_sample_ends(file, entry))
    return digest.hexdigest()


def _sample_ends(file: Path, entry: TensorEntry) -> bytes:
    """Return the bytes of values at both ends of a tensor, floating point ones in bfloat16."""
    size = min(entry.end - entry.begin, _SAMPLE * entry.dtype.itemsize)
    if not size:
        return b""
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        start = _LENGTH_BYTES + int.from_bytes(os.pread(descriptor, _LENGTH_BYTES, 0), "little")
        ends = b"".join(
            os.pread(descriptor, size, start + place) for place in (entry.begin, entry.end - size)
        )
    finally:
        os.close(descriptor)
    values = torch.frombuffer(bytearray(ends), dtype=entry.dtype)
    if values.is_floating_point():
        values = values.to(torch.bfloat16)
    return values.view(torch.uint8).numpy().tobytes()
