"""One process writes into a directory at a time; a process that is dead holds nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorakit.errors import OutputExistsError
from lorakit.files.disks import telling_of_disk

LOCK_NAME = ".lock"
_WORKERS_END_S = 8.0
"""Workers of a data loader hold the lock of a killed process until they notice, some 5 s later."""
_POLL_S = 0.2


@contextmanager
def locked_directory(directory: Path, final: Path | None = None) -> Iterator[None]:
    """Inside the block, keep other processes out of a directory.

    The system gives the lock back when the process ends, however it does. On a network file system
    this holds as far as the system's locks do there.

    Args:
        directory: It must be there; it may be renamed to `final` in the block.
        final: Where the directory is when the block ends; None: where it was.

    Raises:
        OutputExistsError: Another process is at work in it.
        DiskError: The disk may not be written to.
    """
    logging.getLogger("filelock").setLevel(logging.WARNING)
    path = directory / LOCK_NAME
    lock = FileLock(path, thread_local=False)
    with telling_of_disk(path):
        _acquire(lock, path)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        path.write_text(json.dumps(holder) + "\n", encoding="utf-8")
    try:
        yield
    finally:
        # While it is held: who comes next makes another file.
        ((final or directory) / LOCK_NAME).unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, path: Path) -> None:
    deadline = time.monotonic() + _WORKERS_END_S
    while True:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            holder = _holder(path)
            if _is_gone(holder) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            raise OutputExistsError(_refusal(path, holder)) from None
        return


def _holder(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the process that took the lock, on this machine, does not run any more."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _refusal(path: Path, holder: dict[str, Any]) -> str:
    who = "another process"
    if holder:
        who = "process {pid} on {host} since {since}".format_map({**_UNKNOWN, **holder})
    step = "Wait for it or end it, or set another `output`."
    if holder.get("host") != socket.gethostname() or _is_gone(holder):
        step += (
            f" If it does not run any more (a network file system may not notice), delete {path}."
        )
    return (
        f"Cannot write to output {path.parent}: it is in use by {who}, expected a directory that "
        f"no other process writes to. {step}"
    )


_UNKNOWN = {"pid": "?", "host": "?", "since": "?"}


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
