"""Recognize a process by its id and its start, also after its id has been given to another one."""

import os
import signal
import sys
from pathlib import Path

import psutil

_GONE = ("Z", "X", "x")
"""States of a process that has ended and waits for its parent to notice."""
_STATE, _START = 0, 19
"""Places of these fields in /proc/PID/stat, after the name of the program."""


def process_identity(pid: int) -> str | None:
    """Return a text that no other process of this machine has; None if there is no such process.

    On Linux it is the boot and the ticks since then, which do not change when the clock is set. A
    process that has ended counts as gone, even if its parent has not noticed yet.

    >>> process_identity(os.getpid()) == process_identity(os.getpid())
    True
    >>> process_identity(2**22 + 1) is None
    True
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        return None if fields[_STATE] in _GONE else f"{boot}:{fields[_START]}"
    try:
        process = psutil.Process(pid)
        is_gone = process.status() == psutil.STATUS_ZOMBIE
        return None if is_gone else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def is_same_process(pid: int, identity: str) -> bool:
    """Return whether the process with this id is the one with this identity, and still runs."""
    return process_identity(pid) == identity


def send_signal(pid: int, identity: str, number: int = signal.SIGTERM) -> bool:
    """Send a signal to a process, and to no other that has got its id meanwhile.

    Args:
        pid: Its id.
        identity: Its identity.
        number: The signal.

    Returns: Whether the process was there.
    """
    if not hasattr(os, "pidfd_open"):
        if not is_same_process(pid, identity):
            return False
        os.kill(pid, number)
        return True
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not is_same_process(pid, identity):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
