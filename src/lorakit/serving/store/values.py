"""What a store of adapters says about them, and the right to use one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.serving.base_models import ModelKind

FilesKey = tuple[tuple[str, int, int, int], ...]
"""(name, size, time of the last change in ns, inode) of each file of an adapter's directory that
affects answers. It changes whenever one of them is written."""


@dataclass(frozen=True)
class AdapterPlaces:
    """Where the adapters of a server are.

    Attributes:
        folder: A watched folder whose subfolders are adapters or runs, named after them.
        named: Directories of further ones by name, which may lie anywhere.
        root: Directory below which all other adapters must lie, those of the folder too; None is
            the folder.
    """

    folder: Path | None = None
    named: Mapping[str, Path] = field(default_factory=dict[str, Path])
    root: Path | None = None


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
        kind: Its task and labels; None if the files do not say.
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
    kind: ModelKind | None
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


@dataclass(eq=False)
class Lease:
    """The right to use one version of an adapter, or the base alone.

    The model carries the version until all holders have released the lease; whoever gets it is the
    first of them. The defaults are those of the base alone.

    Attributes:
        name: The name that the request asked for.
        carried_name: Name under which the model carries the version, for `adapter_rows`.
        content_hash: Hash of everything that affects its outputs, the key of its cached prefixes.
        companions: The directory of its tokenizer, chat template and `lorakit.json`.
        settings: The contents of `lorakit.json`: task, labels, format of inputs.
        files_key: Changes whenever a file of the adapter, its tokenizer or its template is
            written; a key for what was read from them.
        give_back: Called when the last holder has released it.
    """

    name: str = ""
    carried_name: str | None = None
    content_hash: str = ""
    companions: Path | None = None
    settings: InferenceSettings = field(default_factory=InferenceSettings)
    files_key: FilesKey = ()
    give_back: Callable[[], None] = field(default=lambda: None)
    _holders: int = field(default=1, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def hold(self) -> None:
        """Become one more holder."""
        with self._lock:
            self._holders += 1

    def release(self, *_: object) -> None:
        """Stop being a holder; any thread may call it, and so may a future that is done."""
        with self._lock:
            self._holders -= 1
            is_last = not self._holders
        if is_last:
            self.give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
