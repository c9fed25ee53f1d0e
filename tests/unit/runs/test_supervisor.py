"""The process beside a job: its exit code is kept, and only one works on a job."""

import os
import signal
import sys
import threading
import time

import pytest

from lorakit.runs import supervisor
from lorakit.runs.process import stop_run
from lorakit.runs.queue import RunQueue

WAITS = "import time; time.sleep(60)"


@pytest.fixture
def supervised(tmp_path, monkeypatch):
    """Return a function that runs a program as a job, supervised by a thread of this process."""
    monkeypatch.setattr("lorakit.runs.queue.start_supervisor", lambda job, root: None)
    queue, threads = RunQueue(tmp_path), []

    def start(code):
        monkeypatch.setattr(supervisor, "_command", lambda job: [sys.executable, "-c", code])
        job = queue.add(["train"], "a")
        threads.append(threading.Thread(target=supervisor.supervise, args=(tmp_path, job.number)))
        threads[-1].start()
        deadline = time.monotonic() + 30
        while (found := queue.jobs.get(job.number)).state != "running":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return found

    yield start
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def ended(queue_root, timeout_s=30):
    jobs = RunQueue(queue_root).jobs
    deadline = time.monotonic() + timeout_s
    while (job := jobs.get(1)).exit_code is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job


def test_kill_9_of_the_command_is_an_interruption(supervised, tmp_path):
    job = supervised(WAITS)
    os.kill(job.pid, signal.SIGKILL)
    killed = ended(tmp_path)
    assert (killed.state, killed.exit_code, killed.was_killed) == ("interrupted", -9, True)
    assert killed.problem() == "The process was killed, by a user or because memory ran out."


def test_a_job_is_stopped_by_a_signal_to_the_command(supervised, tmp_path):
    supervised(WAITS)
    stop_run(tmp_path, "a")
    assert ended(tmp_path).state == "interrupted"


def test_an_error_is_a_failure_with_the_last_line_of_the_log(supervised, tmp_path):
    job = supervised("import time; time.sleep(1); raise SystemExit(1)")
    job.log_file.write_text("Loading\nTraceback\nMemoryError\n\n")
    failed = ended(tmp_path)
    assert (failed.state, failed.problem()) == ("failed", "MemoryError (exit code 1)")


def test_a_second_supervisor_leaves_a_job_alone(supervised, tmp_path):
    job = supervised(WAITS)
    supervisor.supervise(tmp_path, job.number)  # returns at once
    assert RunQueue(tmp_path).jobs.get(1).pid == job.pid
    os.kill(job.pid, signal.SIGKILL)
    ended(tmp_path)
    supervisor.supervise(tmp_path, job.number)
    assert RunQueue(tmp_path).jobs.get(1).exit_code == -9
