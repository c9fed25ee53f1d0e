"""Reading the files of an adapter until they belong together."""

from __future__ import annotations

import time
from threading import Condition

from lorakit.adapters import Adapter
from lorakit.errors import AdapterFileError, ConfigError, MissingFileError
from lorakit.serving.store.catalogue import Catalogue, Entry
from lorakit.serving.store.content_hash import content_hash
from lorakit.serving.store.probe import require_update

_PAUSE_S = 0.05
"""Pause before files are read again that may be half-written."""


class Reader:
    """Reads adapters of a catalogue, and writes down what their files hold."""

    def __init__(self, lock: Condition, catalogue: Catalogue, *, allow_noop: bool):
        """Share the state of a store.

        Args:
            lock: Guards the catalogue.
            catalogue: The known adapters.
            allow_noop: Whether all updates of an adapter may be zero.
        """
        self._lock = lock
        self._catalogue = catalogue
        self._allow_noop = allow_noop

    def read(self, entry: Entry) -> Adapter | None:
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
                if not self._allow_noop:
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
