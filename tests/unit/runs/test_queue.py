"""The queue: one at a time, by files, across processes."""

import json
import os
import time

import pytest

from lorakit.errors import ConfigError, MissingFileError, OutputExistsError
from lorakit.libraries.process_identity import process_identity
from lorakit.runs.queue import RunQueue

TRAIN = ["train", "recipe.yaml"]


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A queue whose jobs start as marks on the job alone."""
    started = []

    def start(job, root):
        started.append(job.number)
        facts = {"pid": os.getpid(), "started_s": time.time()}
        facts["identity"] = process_identity(os.getpid())
        (job.folder / "process.json").write_text(json.dumps(facts))

    monkeypatch.setattr("lorakit.runs.queue.start_supervisor", start)
    made = RunQueue(tmp_path)
    made.started = started
    return made


def end(job, code=0):
    (job.folder / "ended.json").write_text(json.dumps({"exit_code": code}))


def test_one_job_runs_at_a_time(queue):
    first, second = (queue.add(TRAIN, name) for name in ("a", "runs/b"))
    assert queue.started == [1]
    assert (first.state, second.state) == ("running", "queued")
    assert queue.start_waiting() == []
    end(first)
    assert [job.number for job in queue.start_waiting()] == [2]


def test_more_may_run_at_a_time(queue):
    for name in "abc":
        queue.add(TRAIN, name)
    settings = queue.root / ".lorakit" / "queue.json"
    settings.write_text('{"at_once": 0}')
    assert queue.at_once == 1 and queue.start_waiting() == []
    settings.write_text('{"at_once": 2}')
    assert queue.at_once == 2 and [job.number for job in queue.start_waiting()] == [2]


def test_a_job_has_its_command(queue):
    job = queue.add([*TRAIN, "lora.r=8"], "a b")
    assert (job.words, job.cwd) == (("train", "recipe.yaml", "lora.r=8"), queue.root)


def test_numbers_grow_and_are_not_given_twice(queue):
    first = queue.add(TRAIN, "a")
    end(first)
    queue.add(TRAIN, "b")
    queue.cancel(1)
    assert queue.add(TRAIN, "c").number == 3
    with pytest.raises(MissingFileError, match="No job 1"):
        queue.cancel(1)


def test_a_running_job_cannot_be_removed_but_one_that_waits_can(queue):
    queue.add(TRAIN, "a")
    second = queue.add(TRAIN, "b")
    with pytest.raises(ConfigError, match="'a' from the queue: it is running"):
        queue.cancel(1)
    queue.cancel(second.number)
    assert [job.output for job in queue.jobs.all()] == ["a"]


@pytest.mark.parametrize("output", ["../a", "/etc/a", ".", "", ".hidden", "a/.b", "a\nb"])
def test_an_output_elsewhere_is_refused(queue, output):
    with pytest.raises(ConfigError, match="output: got"):
        queue.add(TRAIN, output)
    assert not (queue.root / ".lorakit" / "jobs").exists()


def test_an_output_by_a_link_out_of_the_folder_is_refused(queue, tmp_path_factory):
    (queue.root / "link").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ConfigError, match="output: got 'link/a'"):
        queue.add(TRAIN, "link/a")


def test_nothing_is_overwritten(queue):
    (queue.root / "a").mkdir()
    (queue.root / "a" / "file").touch()
    with pytest.raises(OutputExistsError, match="it holds other files"):
        queue.add(TRAIN, "a")
    queue.add(TRAIN, "b")
    with pytest.raises(OutputExistsError, match="job 1 in the queue writes there"):
        queue.add(TRAIN, "./b")


def test_a_damaged_job_is_left_out(queue):
    job = queue.add(TRAIN, "a")
    (job.folder / "job.json").write_text("{")
    (job.folder.parent / "000009").mkdir()
    (job.folder.parent / "notes").mkdir()
    assert queue.jobs.all() == []
    assert queue.add(TRAIN, "b").number == 10


def waiting_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_jobs_follow_each_other_without_the_program_that_added_them(tmp_path):
    """Real processes: a supervisor runs a quick command, keeps its exit code, starts the next."""
    queue = RunQueue(tmp_path)
    first = queue.add(["--version"], "a")
    second = queue.add(["train", "gone.yaml"], "b")
    waiting_for(lambda: queue.jobs.get(second.number).state == "failed")
    done, failed = queue.jobs.all()
    assert (done.state, done.exit_code, failed.exit_code) == ("finished", 0, 2)
    assert first.log_file.read_text().startswith("lorakit ")
    assert "gone.yaml" in failed.problem()
