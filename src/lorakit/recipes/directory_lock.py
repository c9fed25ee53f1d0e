"""A lock that lets one process at a time write to a directory; a dead process holds no lock."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from lorakit.errors import OutputExistsError
from lorakit.files.disks import reporting_disk_errors
from lorakit.libraries.process_identity import process_identity

LOCK_NAME = ".lock"
_WORKERS_END_S = 8.0
"""Data loader workers hold the lock of a killed process until they notice, after about 5 s."""
_POLL_S = 0.2


@contextmanager
def locking_directory(directory: Path, final: Path | None = None) -> Generator[None]:
    """Lock a directory against other processes inside the block.

    The system releases the lock when the process ends, also after a kill. On a network file system
    the lock is as reliable as the system's locks are there.

    Args:
        directory: An existing directory; it may be renamed to `final` in the block.
        final: Path of the directory when the block ends; None if it is not renamed.

    Raises:
        OutputExistsError: Another process holds the lock.
        DiskError: The disk is not writable.
    """
    logging.getLogger("filelock").setLevel(logging.WARNING)
    path = directory / LOCK_NAME
    lock = FileLock(path, thread_local=False)
    with reporting_disk_errors(path):
        _acquire(lock, path)
        holder: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname()}
        holder |= {"since": _now(), "identity": process_identity(os.getpid())}
        path.write_text(json.dumps(holder) + "\n", encoding="utf-8")
    try:
        yield
    finally:
        # Delete while the lock is held: the next process creates another file. On a disk that has
        # become read-only it stays, and the error that ends the block is the one to report.
        with contextlib.suppress(OSError):
            ((final or directory) / LOCK_NAME).unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, path: Path) -> None:
    deadline = time.monotonic() + _WORKERS_END_S
    while True:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            holder = lock_holder(path.parent)
            if has_ended(holder) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            raise OutputExistsError(_in_use_message(path, holder)) from None
        return


def lock_holder(directory: Path) -> dict[str, Any]:
    """Return what a directory's lock file says about the process that holds, or held, the lock.

    Returns: "pid", "host", "since" and "identity", as far as they are there; an empty dictionary
        without a lock file.
    """
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((directory / LOCK_NAME).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return cast(dict[str, Any], found)
    return {}


def has_ended(holder: Mapping[str, Any]) -> bool:
    """Return whether the process that took a lock ran on this machine and has ended."""
    pid, identity = holder.get("pid"), holder.get("identity")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    now = process_identity(pid)
    return now is None or (identity is not None and now != identity)


def _in_use_message(path: Path, holder: dict[str, Any]) -> str:
    who = "another process"
    if holder:
        who = "process {pid} on {host} since {since}".format_map({**_UNKNOWN, **holder})
    step = "Wait for it or stop it, or set another `output`."
    if holder.get("host") != socket.gethostname() or has_ended(holder):
        step += (
            f" If it is no longer running (a network file system may not notice), delete {path}."
        )
    return (
        f"Cannot write to output {path.parent}: it is in use by {who}, expected a directory that "
        f"no other process writes to. {step}"
    )


_UNKNOWN = {"pid": "?", "host": "?", "since": "?"}


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
