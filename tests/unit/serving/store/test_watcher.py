"""A function called again and again."""

import logging
import threading

from lorakit.serving.store.watcher import Watcher


def test_it_looks_until_it_is_stopped():
    looked = threading.Semaphore(0)
    watcher = Watcher(looked.release, 0.001)
    watcher.start()
    assert all(looked.acquire(timeout=10) for _ in range(3))
    watcher.stop()
    while looked.acquire(blocking=False):
        pass
    assert not looked.acquire(timeout=0.05)


def test_a_look_that_fails_is_reported_and_is_not_the_last(caplog):
    calls = []
    enough = threading.Event()

    def look():
        calls.append(None)
        if len(calls) == 1:
            raise OSError("the disk is away")
        enough.set()

    watcher = Watcher(look, 0.001)
    with caplog.at_level(logging.ERROR, "lorakit.serving"):
        watcher.start()
        assert enough.wait(10)
        watcher.stop()
    assert "Looking for adapters failed" in caplog.text and "the disk is away" in caplog.text


def test_one_that_was_never_started_can_be_stopped():
    Watcher(lambda: None, 1).stop()
