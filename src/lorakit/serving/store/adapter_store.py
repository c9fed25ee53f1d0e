"""The adapters of a server: known by name, loaded when asked for, evicted when unused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.errors import AdapterNameError, LorakitError
from lorakit.serving.store.allowed_paths import AllowedPaths
from lorakit.serving.store.catalogue import Catalogue, Entry
from lorakit.serving.store.loader import Loader
from lorakit.serving.store.memory import AdapterMemory, CarriedVersion
from lorakit.serving.store.placing import Placing
from lorakit.serving.store.probe import Probe
from lorakit.serving.store.values import AdapterCounts, KnownAdapter, Lease, StoreSettings
from lorakit.serving.store.watcher import Watcher


class AdapterStore:
    """The adapters that requests can name, and those of them that one model carries.

    The model carries versions: a rewritten adapter is another version, which new requests use,
    while those that run finish on theirs. Adapters of equal content share a version.

    All methods may be called from any thread, also from an event loop: none waits for a load.
    """

    def __init__(
        self,
        model: nn.Module,
        base: str,
        *,
        run_between_steps: Callable[[Callable[[], Any]], Future[Any]],
        folder: Path | None = None,
        named: Mapping[str, Path] | None = None,
        root: Path | None = None,
        settings: StoreSettings | None = None,
    ):
        """Find the adapters; none is loaded.

        Args:
            model: A transformers model in evaluation mode.
            base: Name of the base alone, which no adapter may have.
            run_between_steps: Runs a function in the thread that owns the model, after those given
                to it before, with no `adapter_rows` block open.
            folder: A folder whose subfolders are adapters or run directories, named after them.
            named: Directories of further adapters, or of runs, by name.
            root: The directory below which all adapters that the server is asked to load must lie,
                those of the folder too; None is the folder. Those in `named` may lie anywhere.
            settings: Memory, pins and the like.

        Raises:
            ConfigError: A name is given twice, is the base's, or has control characters.
            MissingFileError: The folder, or the directory of a named adapter, does not exist.
        """
        self._settings = settings or StoreSettings()
        self._paths = AllowedPaths(root or folder)
        self._lock = threading.Condition()
        self._catalogue = Catalogue(base, folder, named or {}, self._paths)
        self._memory = AdapterMemory(self._settings.memory_bytes)
        self._placing = Placing(
            model,
            self._settings.factor_dtype,
            Probe(model, allow_noop=self._settings.allow_noop),
        )
        self._counts: Counter[tuple[str, str]] = Counter()
        self._run_between_steps = run_between_steps
        self._loader = Loader(
            self._lock,
            self._catalogue,
            self._memory,
            self._placing,
            run_between_steps,
            self._settings,
            self._loaded,
        )
        self._waiting: dict[Entry, list[Future[Lease]]] = {}
        self._watcher = Watcher(self.scan, self._settings.scan_every_s)
        self.scan()

    # ---- what is known ----

    def known(self) -> list[KnownAdapter]:
        """Return all adapters by name, with the problems of those that cannot be served."""
        with self._lock:
            return [self._described(e) for e in sorted(self._catalogue, key=lambda e: e.name)]

    def find(self, name: str) -> KnownAdapter:
        """Return one adapter, as its files are now.

        Raises:
            AdapterNameError: There is none of that name; the message has the nearest names.
        """
        with self._lock:
            return self._described(self._catalogue.look_up(name))

    def _described(self, entry: Entry) -> KnownAdapter:
        version = self._memory.get(entry.content_hash)
        facts = entry.facts
        return KnownAdapter(
            name=entry.name,
            path=entry.path,
            problem=None if entry.failure is None else str(entry.failure),
            content_hash=entry.content_hash,
            rank=None if facts is None else facts.rank,
            task=None if facts is None else facts.task,
            bytes=0 if facts is None else self._placing.bytes_of(facts.elements),
            in_memory=version is not None,
            pinned=entry.name in self._settings.pinned,
            leases=0 if version is None else version.leases,
        )

    def counts(self) -> dict[str, AdapterCounts]:
        """Return loads, evictions and refusals by name, of adapters that had any."""
        with self._lock:
            names = dict.fromkeys(name for name, _ in self._counts)
            return {
                name: AdapterCounts(
                    *(self._counts[name, what] for what in ("loads", "evictions", "refusals"))
                )
                for name in names
            }

    @property
    def bytes_in_memory(self) -> int:
        """Memory of the adapters that the model carries."""
        with self._lock:
            return self._memory.bytes_in_use

    # ---- leases ----

    def lease(self, name: str) -> Future[Lease]:
        """Return the right to use an adapter, once the model carries it.

        Its files are looked at now, so a new or rewritten adapter is the one that is used.
        Cancelling the future before it is done gives the lease back.

        The future raises:
            AdapterNameError: There is no adapter of that name; the message has the nearest names.
            AdapterMismatchError: It was made for another base; the message has the first key.
            AdapterFileError, MissingFileError, ConfigError: Its files are damaged, missing, outside
                the root, or make an adapter that does nothing or gives NaN.
            AdapterMemoryError: It is larger than all the memory, or everything in memory stayed in
                use for too long.
        """
        future: Future[Lease] = Future()
        with self._lock:
            try:
                entry = self._catalogue.look_up(name)
                lease = self._lease_now(entry)
            except LorakitError as error:
                self._count_refusal(name, error)
                refusal = error
            else:
                refusal = None
                if lease is None:
                    self._wait(entry, [future])
        if refusal is not None:
            future.set_exception(refusal)
        elif lease is not None:
            _hand_over(future, lease)
        return future

    async def leased(self, name: str) -> Lease:
        """Return what `lease` returns; if the caller is cancelled, no lease is left behind."""
        future = self.lease(name)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_release_unused)
            raise

    def _lease_now(self, entry: Entry) -> Lease | None:
        """Return a lease of what the model carries already; None if it must be loaded."""
        entry.raise_failure()
        version = None if entry.content_hash is None else self._memory.use(entry.content_hash)
        if version is None or entry.failure is not None:
            return None
        version.leases += 1
        return Lease(
            name=entry.name,
            carried_name=version.carried_name,
            content_hash=version.content_hash,
            path=entry.path,
            companions=entry.companions,
            settings=entry.settings,
            files_key=entry.files_key,
            give_back=lambda: self._give_back(version),
        )

    def _give_back(self, version: CarriedVersion) -> None:
        with self._lock:
            version.leases -= 1
            self._memory.use(version.content_hash)
            if not version.leases:
                self._remove_unknown()
            self._lock.notify_all()

    def _remove_unknown(self) -> None:
        """Take unused versions out of the model that no adapter has any more."""
        known = {key for e in self._catalogue for key in (e.content_hash, e.previous_hash) if key}
        gone = self._memory.take_unknown(known)
        if gone:
            names = [version.carried_name for version in gone]
            self._run_between_steps(lambda: self._placing.remove(names))

    # ---- loads ----

    def _wait(self, entry: Entry, futures: list[Future[Lease]]) -> None:
        """Let futures wait for a load, and begin it if it has not begun."""
        waiting = self._waiting.get(entry)
        if waiting is not None:
            waiting.extend(futures)
            return
        self._waiting[entry] = futures
        self._loader.begin(entry)

    def _loaded(
        self, asked: Entry, entry: Entry, error: Exception | None, evicted: list[CarriedVersion]
    ) -> None:
        """Answer those who wait for a load.

        Args:
            asked: The entry that they asked for.
            entry: What its files have become; the same one, unless they changed meanwhile.
            error: Why it is not in the model, or None.
            evicted: The versions that left for it.
        """
        leases: list[tuple[Future[Lease], Lease]] = []
        with self._lock:
            futures = self._waiting.pop(asked, [])
            for version in evicted:
                self._counts[version.name, "evictions"] += 1
            if error is None:
                self._counts[entry.name, "loads"] += 1
                for future in futures:
                    lease = self._lease_now(entry)
                    if lease is not None:
                        leases.append((future, lease))
            else:
                for _ in futures:
                    self._count_refusal(entry.name, error)
            self._lock.notify_all()
        if error is not None:
            for future in futures:
                _refuse(future, error)
        for future, lease in leases:
            _hand_over(future, lease)
