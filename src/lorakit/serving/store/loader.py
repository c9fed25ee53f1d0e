"""Loading adapters: reading in threads of its own, then one exchange between two steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Condition
from typing import Any

from lorakit.adapters import Adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.errors import (
    AdapterFileError,
    AdapterMemoryError,
    AdapterStateError,
    ConfigError,
    LorakitError,
    MissingFileError,
)
from lorakit.injection.state import valid_name
from lorakit.ops.native import openmp
from lorakit.serving.store.catalogue import Catalogue, Entry
from lorakit.serving.store.content_hash import content_hash
from lorakit.serving.store.memory import AdapterMemory, CarriedVersion
from lorakit.serving.store.placing import Placing
from lorakit.serving.store.probe import require_update
from lorakit.serving.store.values import StoreSettings

_PAUSE_S = 0.05
"""Pause before files are read again that may be half-written."""

_NAME_CHARACTERS, _HASH_CHARACTERS = 40, 12
"""Characters of an adapter's name and hash in its carried name."""

Answer = Callable[[], None]
"""Tells somebody that a load has ended; called without the lock."""


def stopping(name: str) -> AdapterStateError:
    """Return the error of a load that a server which stops does not finish."""
    return AdapterStateError(
        f"Cannot load adapter {name!r}: the server is stopping, expected a running one. Start it "
        "again."
    )


class Loader:
    """Brings adapters into the model, one load for each entry of the catalogue."""

    def __init__(
        self,
        lock: Condition,
        catalogue: Catalogue,
        memory: AdapterMemory,
        placing: Placing,
        run_between_steps: Callable[[Callable[[], Any]], Future[Any]],
        settings: StoreSettings,
        count: Callable[[str, str], None],
        finished: Callable[[Entry, Exception | None], list[Answer]],
    ):
        """Share the state of a store.

        Args:
            lock: Guards the catalogue and the memory; notified when memory may have become free.
            catalogue: The known adapters.
            memory: The versions that the model carries.
            placing: Exchanges adapters of the model.
            run_between_steps: As in `AdapterStore`.
            settings: As in `AdapterStore`.
            count: Counts "loads" and "evictions" by name; called with the lock.
            finished: Takes the outcome of a load, None for success or if the entry's files have
                changed; called with the lock, in the moment in which a version is in memory.
        """
        self._lock = lock
        self._catalogue = catalogue
        self._memory = memory
        self._placing = placing
        self._run_between_steps = run_between_steps
        self._settings = settings
        self._count = count
        self._finished = finished
        self._adding: set[str] = set()
        self._threads = ThreadPoolExecutor(settings.loading_threads, "adapter-loader")

    def begin(self, entry: Entry) -> None:
        """Load an adapter in a thread.

        Raises:
            AdapterStateError: The loader has been stopped.
        """
        try:
            self._threads.submit(self._load, entry)
        except RuntimeError:
            raise stopping(entry.name) from None

    def stop(self) -> None:
        """Begin no other load; those that run end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def pinned(self) -> set[str]:
        """Return the content hashes of pinned adapters."""
        names = self._settings.pinned
        return {e.content_hash for e in self._catalogue if e.name in names and e.content_hash}

    # ---- in a thread of the loader ----

    def _load(self, entry: Entry) -> None:
        try:
            if entry.facts is not None:
                needed_bytes = self._placing.bytes_of(entry.facts.elements)
                with self._lock:  # before anything is read
                    self._memory.require_possible(entry.name, needed_bytes, self.pinned())
            adapter = self._read(entry)
            leaving = None if adapter is None else self._make_room(entry)
            if adapter is not None and leaving is not None:
                self._place(entry, adapter, leaving)
                return
        except Exception as error:
            self._finish(entry, error)
        else:
            self._finish(entry, None)
        finally:
            openmp.end_waiting_threads()

    def _read(self, entry: Entry) -> Adapter | None:
        """Return the adapter in an entry's files; None if they have changed.

        Files that are just being written are read again until they belong together.
        """
        while True:
            adapter, found, settings = None, "", entry.settings
            try:
                if entry.failure is not None:
                    raise entry.failure
                settings = InferenceSettings.load(entry.companions)
                adapter = Adapter.load(entry.path)
                if not self._settings.allow_noop:
                    require_update(entry.name, adapter)
                found = content_hash(adapter)
            except (AdapterFileError, ConfigError, MissingFileError) as error:
                with self._lock:
                    entry.fail(error)
                if entry.is_final:
                    raise
                time.sleep(_PAUSE_S)
            with self._lock:
                if self._catalogue.look_up(entry.name) is not entry:
                    return None
                if adapter is not None:
                    entry.settings = settings
                    self._catalogue.set_content(entry, found)
                    return adapter

    def _make_room(self, entry: Entry) -> list[CarriedVersion] | None:
        """Return the versions that leave for an adapter; None if it is in memory already.

        Raises:
            AdapterMemoryError: There is no room, and none became free in time.
        """
        end = time.monotonic() + self._settings.wait_for_room_s
        key, needed_bytes = self._key_and_bytes(entry)
        with self._lock:
            while True:
                if key in self._memory:
                    return None
                if key not in self._adding:
                    pinned = self.pinned()
                    self._memory.require_possible(entry.name, needed_bytes, pinned)
                    leaving = self._memory.make_room(needed_bytes, pinned)
                    if leaving is not None:
                        self._adding.add(key)
                        return leaving
                if not self._lock.wait(max(end - time.monotonic(), 0)):
                    raise AdapterMemoryError(
                        f"Adapter {entry.name!r} has no room in the memory for adapters: got "
                        f"{needed_bytes:,} bytes to load, and all {self._memory.bytes_in_use:,} "
                        f"of {self._memory.limit_bytes or 0:,} in use for "
                        f"{self._settings.wait_for_room_s:g} s, expected some to become free. Try "
                        "again later, or raise the limit (--adapter-memory)."
                    )

    def _key_and_bytes(self, entry: Entry) -> tuple[str, int]:
        if entry.content_hash is None or entry.facts is None:
            raise AdapterStateError(
                f"Cannot load adapter {entry.name!r}: got no content, expected it to be read "
                "first. Report this as a defect of lorakit."
            )
        return entry.content_hash, self._placing.bytes_of(entry.facts.elements)

    def _place(self, entry: Entry, adapter: Adapter, leaving: list[CarriedVersion]) -> None:
        key, needed_bytes = self._key_and_bytes(entry)
        prefix = valid_name(entry.name)[:_NAME_CHARACTERS]
        carried_name = f"{prefix}-{key[:_HASH_CHARACTERS]}"
        version = CarriedVersion(entry.name, carried_name, key, needed_bytes)
        names = [one.carried_name for one in leaving]
        exchange = partial(self._placing.exchange, names, entry.name, carried_name, adapter)
        try:
            placed = self._run_between_steps(exchange)
        except Exception:
            self._give_up(version, leaving)
            raise
        placed.add_done_callback(partial(self._placed, entry, version, leaving))

    # ---- in the thread that owns the model ----

    def _placed(
        self,
        entry: Entry,
        version: CarriedVersion,
        leaving: list[CarriedVersion],
        placed: Future[Any],
    ) -> None:
        if placed.cancelled():  # the engine is stopping
            self._give_up(version, leaving)
            self._finish(entry, stopping(entry.name))
            return
        error = placed.exception()
        if not isinstance(error, Exception | None):
            error = RuntimeError(str(error))
        with self._lock:  # one block, so that nobody evicts what others wait for
            for one in leaving:
                self._count(one.name, "evictions")
            if error is None:
                self._adding.discard(version.content_hash)
                self._memory.add(version)
                self._count(entry.name, "loads")
            else:
                self._give_up(version, [])
                if isinstance(error, LorakitError):
                    entry.failure, entry.is_final = error, True
            self._finish(entry, error)

    def _give_up(self, version: CarriedVersion, staying: list[CarriedVersion]) -> None:
        """Undo `_make_room` for a version that does not come; these have not left."""
        with self._lock:
            self._adding.discard(version.content_hash)
            self._memory.cancel(version.bytes)
            for one in staying:
                self._memory.restore(one)

    def _finish(self, entry: Entry, error: Exception | None) -> None:
        with self._lock:
            answers = self._finished(entry, error)
            self._lock.notify_all()
        for answer in answers:
            answer()
