"""What a store of adapters says about them, and the right to use one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.config import TaskType

FilesKey = tuple[tuple[str, int, int, int], ...]
"""(name, size, time of the last change in ns, inode) of each file of an adapter's directory that
affects answers. It changes whenever one of them is written."""


@dataclass(frozen=True)
class StoreSettings:
    """How a store loads adapters.

    Attributes:
        memory_bytes: Memory for the adapters that the model carries; None for no limit.
        pinned: Names of adapters that stay in memory once they are there.
        allow_noop: Whether an adapter may be served that changes no output.
        factor_dtype: dtype of factors and trained heads in memory; None as in `add_adapter`.
        wait_for_room_s: How long a load waits while every adapter in memory is in use or pinned.
        scan_every_s: Time between two scans of the folder.
        loading_threads: Number of adapters that are read at a time.
    """

    memory_bytes: int | None = None
    pinned: frozenset[str] = frozenset()
    allow_noop: bool = False
    factor_dtype: torch.dtype | None = None
    wait_for_room_s: float = 30.0
    scan_every_s: float = 1.0
    loading_threads: int = 4


@dataclass(frozen=True)
class KnownAdapter:
    """One adapter that the server knows, in memory or not.

    Attributes:
        name: The name by which requests ask for it.
        path: The directory of its files.
        problem: Why it cannot be served, or None.
        content_hash: Hash of everything that affects its outputs, 64 hexadecimal digits; None
            until its files have been read.
        rank: Largest rank of its updates; None if the files say none.
        task: What it was trained for; None if the files do not say.
        bytes: Memory that it takes in the model.
        in_memory: Whether the model carries its current version.
        pinned: Whether it stays in memory once it is there.
        leases: Number of requests that use its current version.
    """

    name: str
    path: Path
    problem: str | None
    content_hash: str | None
    rank: int | None
    task: TaskType | None
    bytes: int
    in_memory: bool
    pinned: bool
    leases: int


@dataclass(frozen=True)
class AdapterCounts:
    """What has happened to the adapters of one name since the server began."""

    loads: int = 0
    evictions: int = 0
    refusals: int = 0


class Lease:
    """The right to use one version of an adapter: the model carries it until `release`.

    Attributes:
        name: The name that the request asked for.
        carried_name: Name under which the model carries the version, for `adapter_rows`.
        content_hash: Hash of everything that affects its outputs, the key of its cached prefixes.
        path: The directory of its two files.
        companions: The directory of its tokenizer, chat template and `lorakit.json`.
        settings: The contents of `lorakit.json`: task, labels, format of inputs.
        files_key: Changes whenever a file of the adapter, its tokenizer or its template is
            written; a key for what was read from them.
    """

    def __init__(
        self,
        name: str,
        carried_name: str,
        content_hash: str,
        path: Path,
        companions: Path,
        settings: InferenceSettings,
        files_key: FilesKey,
        give_back: Callable[[], None],
    ):
        self.name = name
        self.carried_name = carried_name
        self.content_hash = content_hash
        self.path = path
        self.companions = companions
        self.settings = settings
        self.files_key = files_key
        self._give_back = give_back
        self._lock = threading.Lock()
        self._is_released = False

    def release(self) -> None:
        """End the use; calls after the first do nothing. May be called from any thread."""
        with self._lock:
            was_released, self._is_released = self._is_released, True
        if not was_released:
            self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
