"""Check that all processes of a run see the same run directory."""

from __future__ import annotations

import socket
import time
import uuid
from pathlib import Path

from lorakit.distributed.processes import (
    is_main_process,
    process_count,
    process_rank,
    run_on_all,
    run_on_main,
)
from lorakit.errors import MissingFileError

_TIMEOUT_S = 20.0
"""How long a new file may take to appear on another machine: network file systems cache for a
while that a file does not exist."""


def require_shared_directory(run_path: Path) -> None:
    """Refuse a run directory that is not the same for every process.

    Raises:
        MissingFileError: A process on another machine does not see what the main process writes.
    """
    if process_count() == 1:
        return
    marker = run_on_main(lambda: _write_marker(run_path))
    try:
        run_on_all(lambda: _wait_for_marker(marker))
    finally:
        if is_main_process():
            marker.unlink(missing_ok=True)


def _write_marker(run_path: Path) -> Path:
    marker = run_path.absolute() / f".seen-by-all-{uuid.uuid4().hex}"
    marker.touch()
    return marker


def _wait_for_marker(marker: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not marker.exists():
        if time.monotonic() > deadline:
            raise MissingFileError(
                f"Process {process_rank()} on {socket.gethostname()} does not see the run "
                f"directory {marker.parent} that the main process made: expected an output on a "
                "file system that all machines share, such as NFS. Set another `output`."
            )
        time.sleep(0.1)
