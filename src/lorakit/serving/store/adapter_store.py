"""The adapters of a server: known by name, loaded when asked for, evicted when unused."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.errors import AdapterNameError, LorakitError
from lorakit.serving.store.admission import Admission, Trial, Visit
from lorakit.serving.store.allowed_paths import AllowedPaths
from lorakit.serving.store.catalogue import Catalogue, Entry
from lorakit.serving.store.loader import Answer, Loader, RequireBase, stopping
from lorakit.serving.store.memory import AdapterMemory, CarriedVersion
from lorakit.serving.store.values import (
    AdapterCounts,
    AdapterPlaces,
    KnownAdapter,
    Lease,
    StoreSettings,
)
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
        places: AdapterPlaces,
        *,
        run_between_steps: Callable[[Callable[[], Any]], Future[Any]],
        visit: Visit | None = None,
        require_base: RequireBase | None = None,
        settings: StoreSettings | None = None,
    ):
        """Find the adapters; none is loaded.

        Args:
            model: A transformers model in evaluation mode, which does not run yet.
            base: Name of the base alone, which no adapter may have.
            places: Where the adapters are.
            run_between_steps: Runs a function in the thread that owns the model, after those given
                to it before, with no `adapter_rows` block open.
            visit: Lets an adapter take part in one step of an engine; None if no engine runs.
            require_base: Refuses adapters that were trained on other weights; None refuses none.
            settings: Memory, pins and the like.

        Raises:
            ConfigError: A name is given twice, is the base's, or has control characters.
            MissingFileError: The folder, or the directory of a named adapter, does not exist.
        """
        self._settings = settings or StoreSettings()
        self._paths = AllowedPaths(places.root or places.folder)
        self._lock = threading.Condition()
        self._catalogue = Catalogue(base, places.folder, places.named, self._paths)
        self._memory = AdapterMemory(self._settings.memory_bytes)
        self._admission = Admission(model, self._settings, run_between_steps, visit)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._loader = Loader(
            self._lock,
            self._catalogue,
            self._memory,
            Trial(model, self._settings.factor_dtype),
            self._admission,
            self._settings,
            self._counts,
            self._end_load,
            require_base,
        )
        self._waiting: dict[Entry, list[Future[Lease]]] = {}
        self._is_watching = False
        self._watcher = Watcher(self.scan, self._settings.scan_every_s)
        run_between_steps(self._admission.keep_base_alike)
        self.scan()

    # ---- what is known ----

    def describe_all(self) -> list[KnownAdapter]:
        """Return all adapters by name, with the problems of those that cannot be served."""
        with self._lock:
            return [self._describe(e) for e in sorted(self._catalogue, key=lambda e: e.name)]

    def in_memory(self) -> list[str]:
        """Return the names of the adapters whose current version the model carries."""
        with self._lock:
            return [e.name for e in self._catalogue if self._memory.get(e.content_hash)]

    def find(self, name: str) -> KnownAdapter:
        """Return one adapter, as its files are now.

        Raises:
            AdapterNameError: There is none of that name; the message has the nearest names.
        """
        with self._lock:
            return self._describe(self._catalogue.look_up(name))

    def _describe(self, entry: Entry) -> KnownAdapter:
        version = self._memory.get(entry.content_hash)
        return KnownAdapter(
            name=entry.name,
            path=entry.path,
            problem=None if entry.failure is None else str(entry.failure),
            content_hash=entry.content_hash,
            rank=entry.facts.rank,
            kind=entry.facts.kind,
            bytes=self._admission.bytes_of(entry.facts.elements),
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
            answer = self._answer(name, future)
        if answer is not None:
            answer()
        return future

    def _answer(self, name: str, future: Future[Lease]) -> Answer | None:
        """Return what answers a future; None if it has to wait for a load."""
        try:
            entry = self._catalogue.look_up(name)
            lease = self._lease_now(entry)
            if lease is None:
                self._wait(entry, [future])
                return None
        except LorakitError as error:
            if not isinstance(error, AdapterNameError):  # names that nobody has are not counted
                self._counts[name, "refusals"] += 1
            return partial(_refuse, future, error)
        return partial(_hand_over, future, lease)

    async def wait_for_lease(self, name: str) -> Lease:
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
            companions=entry.companions,
            settings=entry.facts.settings,
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
        gone = self._memory.take_unknown(self._catalogue.hashes)
        if gone:
            with suppress(RuntimeError):  # an engine that has stopped serves nobody
                self._admission.remove([version.carried_name for version in gone])

    # ---- loads ----

    def _wait(self, entry: Entry, futures: list[Future[Lease]]) -> None:
        """Let futures wait for a load, and begin it if it has not begun."""
        waiting = self._waiting.get(entry)
        if waiting is not None:
            waiting.extend(futures)
            return
        self._loader.begin(entry)
        self._waiting[entry] = futures

    def _end_load(self, entry: Entry, error: Exception | None) -> list[Answer]:
        """Return what answers those who wait for a load."""
        futures = self._waiting.pop(entry, [])
        self._remove_unknown()
        if error is None:
            # They begin again if the files have changed meanwhile.
            answers = [self._answer(entry.name, future) for future in futures]
            return [answer for answer in answers if answer is not None]
        if futures:
            self._counts[entry.name, "refusals"] += len(futures)
        return [partial(_refuse, future, error) for future in futures]

    # ---- changes ----

    def load(self, name: str, path: str) -> Future[KnownAdapter]:
        """Add an adapter under a name, and load it.

        Args:
            name: A name that no adapter has.
            path: Directory of an adapter or a run, below the root; relative paths begin there.

        The future raises what that of `lease` raises, and
            AdapterNameError: The name is taken, or not a valid one.
            ConfigError: The path does not lie below the root, or no root is set.
        """
        future: Future[KnownAdapter] = Future()
        try:
            directory = self._paths.resolve(path)
            with self._lock:
                self._catalogue.add_named(name, directory)
        except LorakitError as error:
            _refuse(future, error)
        else:
            self.lease(name).add_done_callback(partial(self._answer_load, name, future))
        return future

    def _answer_load(self, name: str, future: Future[KnownAdapter], leased: Future[Lease]) -> None:
        """Answer who has added an adapter; one that cannot be loaded is forgotten."""
        error = leased.exception()
        if isinstance(error, Exception):
            with suppress(AdapterNameError):
                self.unload(name)
            _refuse(future, error)
            return
        with leased.result():
            _hand_over(future, self.find(name))

    def unload(self, name: str) -> None:
        """Forget an adapter; requests that use it finish.

        One of the watched folder is known again when its files change, or `load` names it.

        Raises:
            AdapterNameError: There is none of that name.
        """
        with self._lock:
            self._catalogue.forget(name)
            self._remove_unknown()

    def add(self, name: str, path: Path) -> None:
        """Add an adapter under a name without loading it, as the store of another model has it.

        Raises:
            AdapterNameError: The name is taken.
        """
        with self._lock:
            self._catalogue.add_named(name, path)

    def take_changes(self, other: AdapterStore) -> None:
        """Know the adapters that another store of the same places knows by now."""
        with other._lock, self._lock:
            self._catalogue.take_changes(other._catalogue)

    def scan(self) -> None:
        """Look at all adapters; reload the rewritten ones of those in memory, and the pinned."""
        names = self._catalogue.names_now()
        with self._lock:
            self._catalogue.keep_only(names)
        for name in sorted(names):
            with self._lock, suppress(AdapterNameError):  # gone in this moment
                self._reload(self._catalogue.look_up(name))
        with self._lock:
            self._remove_unknown()

    def _reload(self, entry: Entry) -> None:
        is_wanted = (entry.previous_hash or "") in self._memory or (
            self._is_watching and entry.name in self._settings.pinned
        )
        if is_wanted and entry.content_hash is None and entry.failure is None:
            self._wait(entry, [])

    def start_watching(self) -> None:
        """Begin to scan every second, and load what is pinned."""
        self._is_watching = True
        self.scan()
        self._watcher.start()

    def stop_watching(self) -> None:
        """End scanning and loading; who waits for a load is refused."""
        self._watcher.stop()
        self._loader.stop()
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for entry, futures in waiting.items():
            for future in futures:
                _refuse(future, stopping(entry.name))


def _hand_over(future: Future[Any], value: Any) -> None:
    """Answer a future; a lease goes back if nobody waits for it any more."""
    if future.set_running_or_notify_cancel():
        future.set_result(value)
    elif isinstance(value, Lease):
        value.release()


def _refuse(future: Future[Any], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        # Each future has its own object, as each raise adds to an exception's traceback.
        future.set_exception(type(error)(*error.args))


def _release_unused(future: Future[Lease]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().release()
