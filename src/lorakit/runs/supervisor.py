"""The small process beside a job: it starts the command, keeps its exit code, and starts the next.

`python -m lorakit.runs.supervisor DIR NUMBER`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from lorakit.files.atomic import write_text
from lorakit.runs.jobs import Job, JobFolder
from lorakit.runs.process import record_process
from lorakit.runs.queue import RunQueue


def supervise(root: Path, number: int) -> None:
    """Run a job to its end, then start the next one that waits.

    Args:
        root: Folder of runs.
        number: Number of the job.
    """
    job = JobFolder(root).get(number)
    with ExitStack() as held:
        try:  # of two supervisors that were started for one job, one works
            held.enter_context(FileLock(job.folder / "supervisor.lock", blocking=False))
        except Timeout:
            return
        if (job.folder / "ended.json").exists():
            return
        code = _run(job)
        facts = {"exit_code": code, "ended_s": time.time()}
        write_text(job.folder / "ended.json", json.dumps(facts) + "\n")
    RunQueue(root).start_waiting()


def _run(job: Job) -> int:
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        _command(job), cwd=job.cwd, env=environment, stdin=subprocess.DEVNULL
    ) as child:
        record_process(job.folder, child.pid)
        return child.wait()


def _command(job: Job) -> list[str]:
    return [sys.executable, "-m", "lorakit", *job.words]


if __name__ == "__main__":
    supervise(Path(sys.argv[1]), int(sys.argv[2]))
