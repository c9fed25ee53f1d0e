"""A thread that calls a function again and again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_SHARE_OF_TIME = 10
"""A scan takes at most about this part of the time, however slow the disk is."""


class Watcher:
    """Calls a function every few seconds in a thread until it is stopped."""

    def __init__(self, look: Callable[[], None], every_s: float):
        self._look = look
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapter-watcher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, once a call that runs has returned."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause_s = self._every_s
        while not self._stopped.wait(pause_s):
            began = time.monotonic()
            try:
                self._look()
            except Exception:
                # The next look may succeed, and without the thread nothing would be noticed.
                logging.getLogger("lorakit.serving").exception("Looking for adapters failed.")
            pause_s = max(self._every_s, _SHARE_OF_TIME * (time.monotonic() - began))
