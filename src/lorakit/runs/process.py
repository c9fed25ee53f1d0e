"""Starting and stopping the process of a run, which outlives the program that starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from lorakit.errors import ConfigError, LorakitError
from lorakit.files.atomic import write_text
from lorakit.libraries.process_identity import process_identity, send_signal
from lorakit.recipes.directory_lock import has_ended, lock_holder
from lorakit.runs.jobs import Job, JobFolder
from lorakit.runs.paths import resolve


def start_supervisor(job: Job, root: Path) -> None:
    """Start a job in its own session; it goes on when this process ends.

    Args:
        job: A job that waits; the caller holds the queue's lock.
        root: Folder of runs.

    Raises:
        LorakitError: The system cannot start a process.
    """
    command = [sys.executable, "-m", "lorakit.runs.supervisor", str(root), str(job.number)]
    try:
        with job.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=root,
                start_new_session=True,
            )
    except OSError as error:
        raise LorakitError(
            f"Cannot start {' '.join(job.words[:2])}: {error.strerror or error}. Free some memory "
            "or end other processes, and try again."
        ) from None
    # Its end is noticed, so that it does not stay in the list of processes.
    threading.Thread(target=process.wait, name=f"job-{job.number}", daemon=True).start()
    record_process(job.folder, process.pid)


def record_process(folder: Path, pid: int) -> None:
    """Write which process a job is, unless it has ended already."""
    identity = process_identity(pid)
    if identity is not None:
        facts = {"pid": pid, "identity": identity, "started_s": time.time()}
        write_text(folder / "process.json", json.dumps(facts) + "\n")


def send_signal_to(job: Job, number: int) -> bool:
    """Send a signal to the process of a job; return whether it was there."""
    if job.pid is None or job.identity is None:
        return False
    return send_signal(job.pid, job.identity, number)


def stop_run(root: Path, relative: str) -> None:
    """Stop the process of a run, whoever started it; a run that trains saves a checkpoint first.

    Args:
        root: Folder of runs.
        relative: Path of the run below it.

    Raises:
        ConfigError: It is not running, or runs on another machine.
    """
    job = JobFolder(root).of(relative)
    if job is not None and job.state == "running" and send_signal_to(job, signal.SIGTERM):
        return
    holder = lock_holder(resolve(root, relative)) if (root / relative).is_dir() else {}
    if holder and holder.get("host") != socket.gethostname():
        raise ConfigError(
            f"Cannot stop {relative!r}: it runs on {holder.get('host')!r}, and this is "
            f"{socket.gethostname()!r}. Stop it there with: kill {holder.get('pid')}"
        )
    if not holder or has_ended(holder):
        raise ConfigError(
            f"Cannot stop {relative!r}: it is not running. Reload the list of runs; it may have "
            "just ended."
        )
    pid = int(holder["pid"])
    identity = holder.get("identity")
    if isinstance(identity, str):
        send_signal(pid, identity, signal.SIGTERM)
    else:  # an earlier version has started it
        os.kill(pid, signal.SIGTERM)
