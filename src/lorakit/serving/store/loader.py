"""Loading adapters: read and compared in threads, then put in and probed by the model's thread."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
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
from lorakit.serving.store.admission import Admission, Trial
from lorakit.serving.store.catalogue import Catalogue, Entry
from lorakit.serving.store.content_hash import content_hash
from lorakit.serving.store.memory import AdapterMemory, CarriedVersion
from lorakit.serving.store.probe import require_update
from lorakit.serving.store.values import StoreSettings

_NAME_CHARACTERS, _HASH_CHARACTERS = 40, 12
"""Characters of an adapter's name and hash in its carried name."""

_PAUSE_S = 0.05
"""Pause before files are read again that may be half-written."""

Answer = Callable[[], None]
"""Tells somebody that a load has ended; called without the lock."""

RequireBase = Callable[[str, Adapter, InferenceSettings, Path], None]
"""Refuses the adapter of a name, with its settings and directory, that was trained on other weights
of the base."""


def stopping(name: str) -> AdapterStateError:
    """Return the error of a load that a server which stops does not finish."""
    return AdapterStateError(
        f"Cannot load adapter {name!r}: the server is stopping, expected a running one. Start it "
        "again."
    )


class Loader:
    """Brings adapters into the model, one load for each entry of the catalogue.

    A load reads the files, compares the adapter with a copy of the model, asks the model's thread
    to take in finished objects and to probe them, and makes room in the memory by taking others
    out. Running answers wait only for objects that enter and leave.
    """

    def __init__(
        self,
        lock: Condition,
        catalogue: Catalogue,
        memory: AdapterMemory,
        trial: Trial,
        admission: Admission,
        settings: StoreSettings,
        counts: Counter[tuple[str, str]],
        finished: Callable[[Entry, Exception | None], list[Answer]],
        require_base: RequireBase | None = None,
    ):
        """Share the state of a store.

        Args:
            lock: Guards the catalogue and the memory; notified when memory may have become free.
            catalogue: The known adapters.
            memory: The versions that the model carries.
            trial: Compares adapters with the base.
            admission: Lets them into the model and takes them out.
            settings: As in `AdapterStore`.
            counts: "loads" and "evictions" by name.
            finished: Takes the outcome of a load, None for success or if the entry's files have
                changed; called with the lock, in the moment in which a version is in memory.
            require_base: As in `AdapterStore`.
        """
        self._lock = lock
        self._catalogue = catalogue
        self._memory = memory
        self._trial = trial
        self._admission = admission
        self._settings = settings
        self._counts = counts
        self._finished = finished
        self._require_base = require_base
        self._admitting: set[Future[None]] = set()
        self._is_stopped = False
        self._claimed: set[str] = set()
        """Content hashes that a load is bringing into the model."""
        self._threads = ThreadPoolExecutor(
            settings.loading_threads, "adapter-loader", openmp.compute_alone
        )

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
        """Begin no other load; those that run end without waiting for the model's thread."""
        with self._lock:
            self._is_stopped = True
            admitting = list(self._admitting)
        for admitted in admitting:
            admitted.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def pinned_hashes(self) -> set[str]:
        """Return the content hashes of pinned adapters."""
        names = self._settings.pinned
        return {e.content_hash for e in self._catalogue if e.name in names and e.content_hash}

    # ---- in a thread of the loader ----

    def _load(self, entry: Entry) -> None:
        try:
            self._require_possible(entry)  # before anything is read
            adapter = self._read(entry)
            if adapter is not None:
                self._require_weights(entry, adapter)
                version = self._version_of(entry)
                if self._claim(version):
                    self._bring_in(entry, version, adapter)
                    return
        except Exception as error:
            self._finish(entry, error)
        else:
            self._finish(entry, None)

    def _require_possible(self, entry: Entry) -> None:
        needed_bytes = self._admission.bytes_of(entry.facts.elements)
        with self._lock:
            self._memory.require_possible(entry.name, needed_bytes, self.pinned_hashes())

    def _read(self, entry: Entry) -> Adapter | None:
        """Return the adapter in an entry's files; None if the entry is not the current one.

        Files that are just being written are read again until they belong together.

        Raises:
            AdapterFileError, ConfigError, MissingFileError: They are damaged or missing, or all
                updates are zero; the entry keeps the failure.
        """
        while True:
            adapter, found = None, ""
            try:
                if entry.failure is not None:
                    raise entry.failure
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
                    self._catalogue.set_content(entry, found)
                    return adapter

    def _require_weights(self, entry: Entry, adapter: Adapter) -> None:
        """Refuse an adapter that was trained on other weights of the base."""
        if self._require_base is None:
            return
        try:
            self._require_base(entry.name, adapter, entry.facts.settings, entry.path)
        except LorakitError as error:
            self._remember(entry, error)
            raise

    def _version_of(self, entry: Entry) -> CarriedVersion:
        """Return the version that carries the content of an entry, which has been read."""
        key, prefix = entry.content_hash or "", valid_name(entry.name)[:_NAME_CHARACTERS]
        needed_bytes = self._admission.bytes_of(entry.facts.elements)
        carried_name = f"{prefix}-{key[:_HASH_CHARACTERS]}"
        return CarriedVersion(entry.name, carried_name, key, needed_bytes)

    def _claim(self, version: CarriedVersion) -> bool:
        """Return whether this load brings in a version; False if it is in memory.

        Another load of the same content is waited for.
        """
        key = version.content_hash
        with self._lock:
            self._lock.wait_for(lambda: key not in self._claimed)
            if key in self._memory:
                return False
            self._claimed.add(key)
            return True

    def _bring_in(self, entry: Entry, version: CarriedVersion, adapter: Adapter) -> None:
        """Let an adapter in and ask for others to leave; `_end_placing` ends the load."""
        try:
            self._admit(entry, version.carried_name, adapter)
            try:
                with self._lock:  # one block, so that versions leave as room was made
                    leaving = self._make_room(version)
                    placed = self._take_out(version, leaving)
            except Exception:
                self._withdraw(version)
                raise
        except Exception:
            with self._lock:
                self._claimed.discard(version.content_hash)
            raise
        placed.add_done_callback(partial(self._end_placing, entry, version, leaving))

    def _admit(self, entry: Entry, carried_name: str, adapter: Adapter) -> None:
        """Bring an adapter into the model, or raise why it must stay outside."""
        try:
            candidate = self._trial.pass_through(entry.name, carried_name, adapter)
        except LorakitError as error:
            self._remember(entry, error)
            raise
        admitted = self._admission.admit(candidate)
        with self._lock:
            self._admitting.add(admitted)
            is_stopped = self._is_stopped
        try:
            if is_stopped:
                admitted.cancel()
            admitted.result()
        except CancelledError:
            raise stopping(entry.name) from None
        except AdapterFileError as error:
            self._remember(entry, error)
            raise
        finally:
            with self._lock:
                self._admitting.discard(admitted)

    def _remember(self, entry: Entry, error: LorakitError) -> None:
        with self._lock:
            entry.failure, entry.is_final = error, True

    def _make_room(self, version: CarriedVersion) -> list[CarriedVersion]:
        """Reserve room for a version, and return the versions that leave for it.

        Raises:
            AdapterMemoryError: There is no room, and none became free in time.
        """
        end = time.monotonic() + self._settings.wait_for_room_s
        while True:
            pinned = self.pinned_hashes()
            self._memory.require_possible(version.name, version.bytes, pinned)
            leaving = self._memory.make_room(version.bytes, pinned)
            if leaving is not None:
                return leaving
            if not self._lock.wait(max(end - time.monotonic(), 0)):
                raise AdapterMemoryError(
                    f"Adapter {version.name!r} has no room in the memory for adapters: got "
                    f"{version.bytes:,} bytes to load, and all {self._memory.bytes_in_use:,} "
                    f"of {self._memory.limit_bytes or 0:,} in use for "
                    f"{self._settings.wait_for_room_s:g} s, expected some to become free. Try "
                    "again later, or raise the limit (--adapter-memory)."
                )

    def _take_out(self, version: CarriedVersion, leaving: list[CarriedVersion]) -> Future[Any]:
        """Take those that leave for a version out of the model."""
        if not leaving:
            done: Future[Any] = Future()
            done.set_result(None)
            return done
        names = [one.carried_name for one in leaving]
        try:
            return self._admission.remove(names)
        except Exception:
            self._memory.undo_room(version.bytes, leaving)
            raise

    def _withdraw(self, version: CarriedVersion) -> None:
        with suppress(RuntimeError):  # an engine that has stopped serves nobody
            self._admission.remove([version.carried_name])

    # ---- in the thread that owns the model ----

    def _end_placing(
        self,
        entry: Entry,
        version: CarriedVersion,
        leaving: list[CarriedVersion],
        placed: Future[Any],
    ) -> None:
        has_run = not placed.cancelled()  # else the engine is stopping
        error = placed.exception() if has_run else stopping(entry.name)
        if not isinstance(error, Exception | None):
            error = RuntimeError(str(error))
        if error is not None:
            self._withdraw(version)
        with self._lock:  # one block, so that nobody evicts what others wait for
            if error is None:
                self._memory.add(version)
                self._counts[entry.name, "loads"] += 1
            else:
                self._memory.undo_room(version.bytes, [] if has_run else leaving)
            for one in leaving if has_run else ():
                self._counts[one.name, "evictions"] += 1
            self._claimed.discard(version.content_hash)
            answers = self._end(entry, error)
        for answer in answers:
            answer()

    # ---- in both ----

    def _finish(self, entry: Entry, error: Exception | None) -> None:
        with self._lock:
            answers = self._end(entry, error)
        for answer in answers:
            answer()

    def _end(self, entry: Entry, error: Exception | None) -> list[Answer]:
        self._lock.notify_all()
        return self._finished(entry, error)
