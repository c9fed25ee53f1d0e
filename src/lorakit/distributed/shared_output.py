"""Whether all processes of a run see one and the same run directory."""

from __future__ import annotations

import socket
import time
import uuid
from pathlib import Path

from lorakit.distributed.processes import (
    all_agree,
    is_main,
    main_decides,
    process_count,
    process_rank,
)
from lorakit.errors import MissingFileError

_PATIENCE_S = 20.0
"""How long a file may take from one machine to another: network file systems remember for a while
that a file is not there."""


def require_shared(run_path: Path) -> None:
    """Refuse a run directory that is not the same one for every process.

    Raises:
        MissingFileError: A process on another machine does not see what the main one writes.
    """
    if process_count() == 1:
        return
    sign = main_decides(lambda: _put_up(run_path))
    try:
        all_agree(lambda: _look_for(sign))
    finally:
        if is_main():
            sign.unlink(missing_ok=True)


def _put_up(run_path: Path) -> Path:
    sign = run_path.absolute() / f".seen-by-all-{uuid.uuid4().hex}"
    sign.touch()
    return sign


def _look_for(sign: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not sign.exists():
        if time.monotonic() > deadline:
            raise MissingFileError(
                f"Process {process_rank()} on {socket.gethostname()} does not see the run "
                f"directory {sign.parent} that the main process made: expected an output on a file "
                "system that all machines share, such as NFS. Set another `output`."
            )
        time.sleep(0.1)
